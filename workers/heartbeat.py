"""The progress of a worker, which another thread sends to the driver as heartbeats.

step, image, tensor --touch--> |          |
bytes read or written --beat-> | Progress | --heartbeat--> silent for longer than allowed?
compiling, waiting ----busy--> |          |
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from workers.types.values import FrozenModel


class Heartbeat(FrozenModel):
    """A sign of life of a slot. It is never written to the ledger."""

    slot: str
    order: str | None = None
    run: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    silent_s: float = 0.0
    """Seconds since the last progress."""
    busy: str | None = None
    """What the worker does that shows no progress while it lasts. None: ordinary work."""
    limit_s: float = 0.0
    """Seconds that it may be silent, if that is more than fleet.heartbeat_s."""
    rss_bytes: int = 0


@dataclass
class Progress:
    """Progress of the current order: one writer (the work), one reader (the heartbeat).

    Threads that move bytes only `beat`. There is no lock; at worst a number is stale.
    """

    order: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    touched_at: float = field(default_factory=time.monotonic)
    interrupt: str | None = None
    """Reason to write a checkpoint and stop at the next step. None: continue."""
    silence: tuple[str | None, float] = (None, 0.0)
    """`busy` and `limit_s` of the heartbeat."""
    on_touch: Callable[[], None] = lambda: None
    """Called at every sign of progress."""

    def begin(self, order: str) -> None:
        self.order, self.facts, self.touched_at = order, {}, time.monotonic()
        self.interrupt = None
        self.silence = (None, 0.0)

    def touch(self, **facts: Any) -> None:
        """Record progress. `facts` are fields of Heartbeat, e.g. step=12, loss=0.3."""
        self.facts.update(facts)
        self.beat()

    def beat(self) -> None:
        """Record that bytes flow. From any thread."""
        self.touched_at = time.monotonic()
        self.on_touch()

    @contextlib.contextmanager
    def busy(self, reason: str, limit_s: float) -> Iterator[None]:
        """Work that cannot touch while it lasts, and that may be silent for `limit_s`."""
        before, self.silence = self.silence, (reason, limit_s)
        self.beat()
        try:
            yield
        finally:
            self.silence = before
            self.beat()

    def end(self) -> None:
        self.order, self.facts, self.touched_at = None, {}, time.monotonic()

    def heartbeat(self, slot: str) -> Heartbeat:
        silent_s = time.monotonic() - self.touched_at if self.order else 0.0
        rss = psutil.Process().memory_info().rss
        busy, limit_s = self.silence
        return Heartbeat(
            slot=slot,
            order=self.order,
            silent_s=silent_s,
            busy=busy,
            limit_s=limit_s,
            rss_bytes=rss,
            **self.facts,
        )
