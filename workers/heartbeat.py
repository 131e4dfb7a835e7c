"""The progress of a worker, which another thread sends to the driver as heartbeats."""

import time
from collections.abc import Callable
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
    rss_bytes: int = 0


@dataclass
class Progress:
    """Progress of the current order: one writer (the work), one reader (the heartbeat).

    There is no lock; at worst a number is stale.
    """

    order: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    touched_at: float = field(default_factory=time.monotonic)
    interrupt: str | None = None
    """Reason to write a checkpoint and stop at the next step. None: continue."""
    on_touch: Callable[[], None] = lambda: None
    """Called at every sign of progress."""

    def begin(self, order: str) -> None:
        self.order, self.facts, self.touched_at = order, {}, time.monotonic()
        self.interrupt = None

    def touch(self, **facts: Any) -> None:
        """Record progress. `facts` are fields of Heartbeat, e.g. step=12, loss=0.3."""
        self.facts.update(facts)
        self.touched_at = time.monotonic()
        self.on_touch()

    def end(self) -> None:
        self.order, self.facts, self.touched_at = None, {}, time.monotonic()

    def heartbeat(self, slot: str) -> Heartbeat:
        silent_s = time.monotonic() - self.touched_at if self.order else 0.0
        rss = psutil.Process().memory_info().rss
        return Heartbeat(
            slot=slot, order=self.order, silent_s=silent_s, rss_bytes=rss, **self.facts
        )
