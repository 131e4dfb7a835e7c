"""The grace period: how long a driver waits for the last checkpoints."""

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet, driver, live
from tests.simulator.world import World
from workers.types import Checkpointed


@pytest.mark.parametrize(
    ("configured", "write_s", "expected"),
    [
        (None, None, 60.0),
        (None, 0.2, 10.0),
        (None, 45.0, 135.0),
        (2.0, 45.0, 2.0),
        (0.0, 45.0, 0.0),
    ],
)
def test_it_follows_the_slowest_checkpoint_unless_it_is_given(
    folder: Path, configured: float | None, write_s: float | None, expected: float
) -> None:
    world = World.at(folder, simulated(1, epochs=2, fleet={"grace_s": configured}))
    live(world)
    events = world.ledger().replay()
    if write_s is not None:
        measured = iter([write_s, write_s / 2])
        events = [
            event.model_copy(update={"write_s": next(measured)})
            if isinstance(event, Checkpointed)
            else event
            for event in events
        ]
    mind = driver(world, SimulatedFleet(world))
    mind.moment = Moment(world.expanded, fold(events))
    assert mind.grace_s == expected


def test_an_order_that_begins_after_the_stop_is_asked_to_end_as_well(folder: Path) -> None:
    """It was queued behind one that ended in its grace period."""
    world = World.at(folder, simulated(3, epochs=50, fleet={"grace_s": 60.0}))
    fleet = SimulatedFleet(world, slots=1)
    fleet.capacity = lambda place, num_due: 16  # type: ignore[method-assign]
    mind = driver(world, fleet)

    def stop(moment: Moment, *_: Any) -> None:
        if any(run.checkpoints for run in moment.state.runs.values()):
            mind.stop_reason = "SIGINT received"

    mind.watch = stop
    began = time.monotonic()
    state = mind.run()
    assert state.stopped is not None and time.monotonic() - began < 30
    steps = [run.last.step for run in state.runs.values() if run.last is not None]
    assert max(steps) < 100, "none trained on to its end"
