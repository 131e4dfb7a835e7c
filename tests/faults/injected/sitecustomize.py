"""Injected faults. Python runs this file first in every process that has this folder on its path.

The environment variable FAULTS lists where a worker dies or freezes, once per experiment:

    {"order": ["taste-"], "touches": 2, "signal": "SIGKILL", "mark": FILE}   during an order
    {"write": "model.safetensors", "signal": "SIGKILL", "mark": FILE}      half-way through a file
    {"refuse": "ENOSPC", "while": FILE}    no write to a local store works while FILE exists
"""

import contextlib
import errno
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

Faults = list[dict[str, Any]]


def inject(faults: Faults) -> None:
    import workers.heartbeat
    import workers.storage.local_disk
    import workers.storage.store

    _interrupt(workers.heartbeat.Progress, [fault for fault in faults if "order" in fault])
    _tear(workers.storage.store.Store, [fault for fault in faults if "write" in fault])
    _refuse(workers.storage.local_disk, [fault for fault in faults if "refuse" in fault])


def _interrupt(progress: Any, faults: Faults) -> None:
    """Strike at the n-th heartbeat of an order; 0 is its beginning."""
    begin, touch = progress.begin, progress.touch

    def count(self: Any, touches: int) -> None:
        self.touches = touches
        for fault in faults:
            fits = (self.order or "").startswith(tuple(fault["order"]))
            fits = fits and touches == fault["touches"]
            if fits and os.environ.get("RANK", "0") == fault.get("rank", "0"):
                strike(fault)

    def counting_begin(self: Any, order: str) -> None:
        begin(self, order)
        count(self, 0)

    def counting_touch(self: Any, **facts: Any) -> None:
        touch(self, **facts)
        count(self, self.touches + 1)

    progress.begin, progress.touch = counting_begin, counting_touch


def _tear(store: Any, faults: Faults) -> None:
    """Strike after the first piece of a checkpoint's file of that name."""
    writing = store.writing

    @contextlib.contextmanager
    def tearing(self: Any, path: str, *arguments: Any) -> Iterator[Any]:
        with writing(self, path, *arguments) as sink:
            fits = [f for f in faults if "/checkpoints/" in path and path.endswith(f["write"])]
            yield Torn(sink, fits[0]) if fits else sink

    store.writing = tearing


def _refuse(local_disk: Any, faults: Faults) -> None:
    """Writes to a local disk fail as they would on a full, read-only or broken one."""
    make_dirs = local_disk.make_dirs  # the first step of every write

    def refusing_make_dirs(folder: Any) -> None:
        for fault in faults:
            if os.path.exists(fault["while"]):
                number = getattr(errno, fault["refuse"])
                raise OSError(number, os.strerror(number), str(folder))
        make_dirs(folder)

    if faults:
        local_disk.make_dirs = refusing_make_dirs


class Torn:
    """A file whose writer is damaged after its first piece."""

    def __init__(self, sink: Any, fault: dict[str, Any]) -> None:
        self._sink, self._fault = sink, fault

    def write(self, data: Any) -> Any:
        written = self._sink.write(data)
        self._sink._sink.flush()  # the file itself, so that the part is on the disk
        strike(self._fault)
        return written


def strike(fault: dict[str, Any]) -> None:
    """Send the signal to this process, unless the mark shows that it was sent before."""
    try:
        os.close(os.open(fault["mark"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), getattr(signal, fault["signal"]))


if "FAULTS" in os.environ:
    inject(json.loads(os.environ["FAULTS"]))
