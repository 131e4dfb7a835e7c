"""Fleets take orders and give back events. The driver knows no more of them than this.

    driver --submit--> Fleet --perform--> worker
           <--events--       <--yield--

`LocalFleet` is one worker in the driver's own process: one order at a time, to its end.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from workers.heartbeat import Heartbeat, Progress
from workers.types import AnyEvent, AnyOrder

Perform = Callable[[AnyOrder, int], Iterator[AnyEvent]]


class Fleet(Protocol):
    """What the driver asks of a fleet."""

    kind: str

    @property
    def num_slots(self) -> int:
        """Slots that the fleet means to have; the width of speculation."""

    def capacity(self, place: str, backlog: int) -> int:
        """Orders for `place` it would take now, when `backlog` are due."""

    def submit(self, order: AnyOrder, attempt: int) -> None:
        """Take an order; one it already holds is ignored."""

    def events(self, timeout_s: float) -> list[AnyEvent]:
        """What happened, waiting at most about this long; a local fleet works meanwhile."""

    def heartbeats(self) -> list[Heartbeat]:
        """The last sign of life of each slot."""

    def interrupt(self, reason: str) -> None:
        """Ask all training to checkpoint and end."""

    def cancel(self, order: str) -> None:
        """Take an order back, by force if it is running."""

    def waiting_for(self) -> str | None:
        """What the fleet itself waits for, in words."""

    def close(self) -> None:
        """Give everything back. Nothing of the fleet outlives this."""


class LocalFleet:
    """Orders of the merge actor have their turn between two orders of the slot."""

    kind = "local"
    num_slots = 1

    def __init__(self, perform: Perform, progress: Progress) -> None:
        self._perform = perform
        self._progress = progress
        self._queues: dict[str, deque[tuple[AnyOrder, int]]] = {"merge": deque(), "slot": deque()}
        self._current: tuple[str, Iterator[AnyEvent]] | None = None

    def capacity(self, place: str, backlog: int) -> int:
        if place == "merge":
            return 16
        return 0 if self._queues["slot"] or self._current else 1

    def submit(self, order: AnyOrder, attempt: int) -> None:
        held = {order.id for queue in self._queues.values() for order, _ in queue}
        if order.id in held or (self._current and self._current[0] == order.id):
            return
        self._queues[order.place].append((order, attempt))

    def events(self, timeout_s: float) -> list[AnyEvent]:
        if self._current is None and not self._begin_next():
            return []
        assert self._current is not None
        event = next(self._current[1], None)
        if event is None:
            self._current = None
            return []
        return [event]

    def _begin_next(self) -> bool:
        for queue in self._queues.values():
            if queue:
                order, attempt = queue.popleft()
                self._current = (order.id, self._perform(order, attempt))
                return True
        return False

    def heartbeats(self) -> list[Heartbeat]:
        return [self._progress.heartbeat("local")]

    def interrupt(self, reason: str) -> None:
        self._progress.interrupt = reason

    def cancel(self, order: str) -> None:
        for queue in self._queues.values():
            kept = [entry for entry in queue if entry[0].id != order]
            queue.clear()
            queue.extend(kept)
        if self._current and self._current[0] == order:
            self._current = None

    def waiting_for(self) -> str | None:
        return None

    def close(self) -> None:
        """The process is the fleet; it ends with it."""
