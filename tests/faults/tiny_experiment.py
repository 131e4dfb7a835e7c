"""The smallest real experiment: two runs of two epochs on a few digits, with BatchNorm.

Its served files must have the same bytes whatever faults happen.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.config import Experiment, load
from orchestrator.driver.ledger import Ledger
from workers.storage.store import Store
from workers.types import AnyEvent

ROOT = Path(__file__).parent.parent.parent

TINY = """
name: tiny
data: {source: digits, image_size: 32, val_fraction: 0.1, test_fraction: 0.75}
model: {name: test_resnet}
train: {epochs: 2, batch_size: 64, lr: 3e-3, hflip: 0.0, crop: [0.6, 1.0]}
sweep: {seeds: 2}
fleet: {device: cpu}
"""

Faults = Sequence[dict[str, Any]]

LONG = ("train.epochs=200", "train.batch_size=16", "sweep.seeds=1", "merge.mode=off")
"""Overrides for a run that is still training when a fault happens."""

SERVED = ("model.safetensors", "config.json", "soup.json")


def experiment(folder: Path, *overrides: str, storage: str | None = None) -> Experiment:
    return load(config_file(folder), overrides, storage=storage or str(folder / "runs"))


def config_file(folder: Path) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(TINY)
    return file


def served(store: Store) -> dict[str, bytes]:
    """Content of the served files."""
    return {name: store.read(f"soup/{name}") for name in SERVED}


def events(store: Store) -> list[AnyEvent]:
    """All events of the ledger; raises if it does not replay."""
    return Ledger(store).replay()


def kinds(store: Store, *, order: str = "") -> list[str]:
    """Kinds of the events whose order id begins with `order`."""
    return [e.kind for e in events(store) if (e.order or "").startswith(order)]


def wait_for(condition: Callable[[], Any], timeout_s: float = 120.0, every_s: float = 0.05) -> Any:
    """The first true value of `condition`; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s:g} s")


# The real command


class Command:
    """`python -m orchestrator run tiny.yaml` in a session of its own."""

    def __init__(self, folder: Path, *arguments: str, faults: Faults = ()) -> None:
        """`faults` are injected into every process; see injected/sitecustomize.py."""
        self.uri = str(folder / "runs" / "tiny")
        command = [sys.executable, "-m", "orchestrator", "run", str(config_file(folder))]
        command += ["--storage", str(folder / "runs"), "--plain", *arguments]
        self._log = (folder / f"log-{time.monotonic_ns()}").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | _injected(folder, faults),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all its processes, Ray's included: they keep the id of the session."""
        kill_session(self.process.pid)
        self.process.wait()
        self._log.close()

    @property
    def store(self) -> Store:
        return Store(self.uri)

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 180.0) -> int:
        return self.process.wait(timeout_s)

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 180.0) -> AnyEvent:
        """The `count`-th event of a kind, once it is in the ledger."""

        def nth_event() -> AnyEvent | None:
            assert self.process.poll() is None, f"ended before {kind}:\n{self.output}"
            events = [event for event in peek(Path(self.uri)) if event["kind"] == kind]
            return events[count - 1] if len(events) >= count else None

        return wait_for(nth_event, timeout_s)


def peek(folder: Path) -> list[dict[str, Any]]:
    """Events of the complete lines of a ledger, while a driver is writing it."""
    lines = [
        line
        for file in sorted((folder / "ledger").glob("*.jsonl"))
        for line in file.read_text().splitlines(keepends=True)
    ]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _injected(folder: Path, faults: Faults) -> dict[str, str]:
    marked = [{**fault, "mark": str(folder / f"fault-{n}")} for n, fault in enumerate(faults)]
    path = f"{ROOT / 'tests' / 'faults' / 'injected'}{os.pathsep}{ROOT}"
    return {"FAULTS": json.dumps(marked), "PYTHONPATH": path}


def environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_worker_niceness": "0",  # workers of low priority starve beside busy processes
        "PYTHONPATH": str(ROOT),
    }


def session_of(leader: int) -> list[psutil.Process]:
    """Live processes of the session that `leader` started, including itself and orphans."""
    processes = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return processes


def kill_session(leader: int) -> None:
    for process in session_of(leader):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    wait_for(lambda: not [p for p in session_of(leader) if p.pid != leader], 30)
