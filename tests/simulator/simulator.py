"""A simulated fleet, and the lives of drivers in a simulated world.

World             what is true and lasts (tests.orchestrator.world)
SimulatedFleet    one driver's slots in it; whatever is in flight dies with them
live(world)       one driver's life, to its end or its death
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.driver.driver import Driver
from orchestrator.driver.lease import Lease
from orchestrator.driver.ledger import Ledger
from orchestrator.state.reducers import CLOSING
from orchestrator.state.state import State
from tests.simulator.world import World
from workers.heartbeat import Heartbeat
from workers.storage.layout import LEASE, LEDGER
from workers.storage.store import Store
from workers.types import AnyEvent, AnyOrder


@dataclass
class _Lane:
    """A slot, or the merge actor: one order at a time, others behind it."""

    name: str
    queue: deque[tuple[AnyOrder, int]] = field(default_factory=deque)
    current: tuple[AnyOrder, Iterator[AnyEvent]] | None = None
    interrupt: str | None = None

    def holds(self, order: str) -> bool:
        running = [self.current[0].id] if self.current else []
        return order in [*running, *(waiting.id for waiting, _ in self.queue)]


class SimulatedFleet:
    """Each call of `events` gives at most one event of every lane, in a random order of lanes.

    With `lazy`, a lane is asked only with that probability, so that events interleave in all ways.
    """

    kind = "simulated"

    def __init__(self, world: World, slots: int = 2, lazy: float = 0.0, seed: int = 0) -> None:
        self.world = world
        world.live_recipes.clear()  # the merge actor starts with the driver
        self.num_slots = slots
        self.submitted: list[AnyOrder] = []
        self._lazy = lazy
        self._random = random.Random(seed)
        self._merge = _Lane("merge")
        self._slots = [_Lane(f"slot-{i}") for i in range(slots)]

    def capacity(self, place: str, num_due: int) -> int:
        if place == "merge":
            return 16
        return sum(not lane.queue and lane.current is None for lane in self._slots)

    def submit(self, order: AnyOrder, attempt: int) -> None:
        lanes = [self._merge] if order.place == "merge" else self._slots
        if any(lane.holds(order.id) for lane in lanes):
            return
        self.submitted.append(order)
        lane = min(lanes, key=lambda lane: len(lane.queue) + (lane.current is not None))
        lane.queue.append((order, attempt))

    def events(self, timeout_s: float) -> list[AnyEvent]:
        self.world.clock += 0.5
        lanes = [self._merge, *self._slots]
        if self._lazy:
            self._random.shuffle(lanes)
            lanes = [lane for lane in lanes if self._random.random() >= self._lazy]
        return [event for lane in lanes for event in self._next(lane)]

    def _next(self, lane: _Lane) -> list[AnyEvent]:
        if lane.current is None:
            if not lane.queue:
                return []
            order, attempt = lane.queue.popleft()
            lane.interrupt = None
            events = self.world.perform(order, attempt, lambda: lane.interrupt)
            lane.current = (order, events)
        event = next(lane.current[1])
        if event.kind in CLOSING:
            lane.current = None
        return [event.model_copy(update={"slot": lane.name})]

    def heartbeats(self) -> list[Heartbeat]:
        return []

    def interrupt(self, reason: str) -> None:
        for lane in self._slots:
            lane.interrupt = reason

    def cancel(self, order: str) -> None:
        for lane in (self._merge, *self._slots):
            lane.queue = deque(entry for entry in lane.queue if entry[0].id != order)
            if lane.current and lane.current[0].id == order:
                lane.current = None

    def waiting_for(self) -> str | None:
        return None

    def close(self) -> None:
        """The lanes are gone with the object."""


class Killed(BaseException):
    """The driver's process died here."""


class FragileLedger(Ledger):
    """Dies at its nth append: before it, in the middle of writing, or right after."""

    def __init__(self, store: Store, dies_at: int, how: str) -> None:
        super().__init__(store)
        self.appends = 0
        self._dies_at = dies_at
        self._how = how

    def append(self, events: list[AnyEvent]) -> list[AnyEvent]:
        if not events:
            return []
        self.appends += 1
        if self.appends != self._dies_at:
            return super().append(events)
        if self._how != "before":
            written = super().append(events)
            if self._how == "torn":
                self._tear(written[0].seq)
        raise Killed

    def _tear(self, seq: int) -> None:
        assert self.store.local_root is not None
        path = self.store.local_root / LEDGER / f"{seq:08d}.jsonl"
        path.write_bytes(path.read_bytes()[:-7])


def driver(
    world: World,
    fleet: SimulatedFleet,
    ledger: Ledger | None = None,
    retry_failed: bool = False,
) -> Driver:
    return Driver(
        world.expanded,
        world.store,
        ledger or world.ledger(),
        _lease(world),
        fleet,
        watch=lambda *_: None,
        now=world.now,
        retry_failed=retry_failed,
    )


def live(
    world: World, ledger: Ledger | None = None, retry_failed: bool = False, **fleet: Any
) -> State:
    """One driver's life: to its end, `finished` included, or to Killed."""
    mind = driver(world, SimulatedFleet(world, **fleet), ledger, retry_failed)
    try:
        state = mind.run()
        return mind.finish() if mind.stop_reason is None else state
    finally:
        world.store.delete(LEASE)


def _lease(world: World) -> Lease:
    lease = Lease(world.store, owner="simulation")
    lease.acquire()
    return lease
