"""Worlds with sync rounds, and what happened in them."""

from typing import Any

from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet
from tests.simulator.world import Mishap, World
from workers.types import AnyOrder, TrainOrder

EPOCHS, PER_EPOCH = 4, 10


def synced(num_runs: int = 3, epochs: int = EPOCHS, **merge: Any) -> Any:
    return simulated(num_runs, epochs=epochs, merge={"mode": "sync", "method": "mean"} | merge)


def events(world: World, *kinds: type) -> list[Any]:
    return [event for event in world.ledger().replay() if isinstance(event, kinds)]


class Starts:
    """Notes what every segment of training began from."""

    def __init__(self) -> None:
        self.orders: list[TrainOrder] = []

    def __call__(self, order: AnyOrder, attempt: int) -> Mishap | None:
        if isinstance(order, TrainOrder):
            self.orders.append(order)
        return None


class SlowFleet(SimulatedFleet):
    """A segment of one run stands still for so many turns of the driver, half a second each."""

    def __init__(self, world: World, run: str, stop_step: int, turns: int) -> None:
        super().__init__(world, slots=3)
        self._slow, self._turns = f"train-{run}-{stop_step:08d}", turns

    def _next(self, lane: Any) -> Any:
        if lane.current and lane.current[0].id == self._slow and self._turns:
            self._turns -= 1
            return []
        return super()._next(lane)
