"""The protocol of a fleet, and the fleet of one worker in the driver's own process.

driver --submit--> Fleet --perform--> worker
       <--events--       <--yield--
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from workers.heartbeat import Heartbeat, Progress
from workers.types import AnyEvent, AnyOrder

Perform = Callable[[AnyOrder, int], Iterator[AnyEvent]]
"""Carries out an attempt of an order."""


class Fleet(Protocol):
    """Carries out orders and returns their events. All that the driver knows of a fleet."""

    kind: str

    @property
    def num_slots(self) -> int:
        """Slots that the fleet aims at; the width of speculation."""

    def capacity(self, place: str, num_due: int) -> int:
        """How many of the `num_due` orders for `place` the fleet would take now."""

    def submit(self, order: AnyOrder, attempt: int) -> None:
        """Take an order. One that the fleet already holds is ignored."""

    def events(self, timeout_s: float) -> list[AnyEvent]:
        """New events, after a wait of about `timeout_s` at most. A local fleet works meanwhile."""

    def heartbeats(self) -> list[Heartbeat]:
        """The last heartbeat of every slot."""

    def interrupt(self, reason: str) -> None:
        """Ask all training to checkpoint and end."""

    def cancel(self, order: str) -> None:
        """Drop the order with this id; if it is running, stop it by force."""

    def waiting_for(self) -> str | None:
        """The resources that the fleet waits for, as text. None: it waits for none."""

    def close(self) -> None:
        """Release all resources; no process of the fleet is left."""


class LocalFleet:
    """One worker in this process: one order at a time, orders of the merge actor first."""

    kind = "local"
    num_slots = 1

    def __init__(self, perform: Perform, progress: Progress) -> None:
        self._perform = perform
        self._progress = progress
        self._queues: dict[str, deque[tuple[AnyOrder, int]]] = {"merge": deque(), "slot": deque()}
        self._current: tuple[str, Iterator[AnyEvent]] | None = None

    def capacity(self, place: str, num_due: int) -> int:
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
        waiting = [order.id for queue in self._queues.values() for order, _ in queue]
        for order in [*waiting, *([self._current[0]] if self._current else [])]:
            self._progress.ask_to_stop(order, reason)

    def cancel(self, order: str) -> None:
        for queue in self._queues.values():
            others = [entry for entry in queue if entry[0].id != order]
            queue.clear()
            queue.extend(others)
        if self._current and self._current[0] == order:
            self._current = None

    def waiting_for(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing to release: the fleet has no process of its own."""
