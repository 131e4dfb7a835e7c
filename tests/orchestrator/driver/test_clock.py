"""Clocks that jump or differ: neither the result nor any duration changes."""

import time
from pathlib import Path

import pytest

from orchestrator.driver.clock import steady_clock
from orchestrator.report.efficiency import fleet_efficiency, wall_s
from orchestrator.state.reducers import fold
from tests.orchestrator.driver.test_driver import outcome
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet, driver, live
from tests.simulator.world import World
from workers.types import Opened, Trained

DAY = 86_400.0


def jumping(monkeypatch: pytest.MonkeyPatch, jumps: list[float]) -> None:
    """Let every call of time.time be off by the next of these, again and again."""
    true, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: true() + jumps[next(calls) % len(jumps)])


def test_the_clock_of_a_driver_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    now = steady_clock()
    before = now()
    jumping(monkeypatch, [DAY, -DAY])
    assert 0 <= now() - before < 60


@pytest.mark.parametrize("jump", [3600.0, -3600.0, DAY, -DAY])
def test_a_jump_of_the_system_clock_changes_no_result_and_no_duration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    plan = simulated(3, epochs=3, fleet={"max_hours": 0.5})
    calm = live(World.at(folder / "calm", plan))
    world = World.at(folder / "jumping", plan)
    mind = driver(world, SimulatedFleet(world))
    mind.now = steady_clock()
    jumping(monkeypatch, [0.0, jump, 0.0])
    mind.run()
    state = mind.finish()
    mind.lease.release()
    assert outcome(state) == outcome(calm) and state.finish_reason is None
    assert 0 <= wall_s(state) < 600
    assert fleet_efficiency(state).busy_s < 600


@pytest.mark.parametrize("skew", [300.0, -300.0])
def test_a_worker_whose_clock_is_off_changes_no_deadline_and_no_duration(
    folder: Path, skew: float
) -> None:
    sync = {"merge": {"mode": "sync", "method": "mean", "deadline_s": 60, "quorum": 1}}
    plan = simulated(3, epochs=3, **sync)
    calm = live(World.at(folder / "calm", plan))

    class Skewed(SimulatedFleet):
        def events(self, timeout_s: float) -> list:  # type: ignore[type-arg]
            came = super().events(timeout_s)
            return [event.model_copy(update={"time": event.time + skew}) for event in came]

    world = World.at(folder / "skewed", plan)
    mind = driver(world, Skewed(world))
    mind.run()
    state = mind.finish()
    assert outcome(state) == outcome(calm)
    assert wall_s(state) == wall_s(calm)
    assert fleet_efficiency(state) == fleet_efficiency(calm)


def test_time_without_a_driver_is_no_wall_time_and_old_ledgers_have_only_their_own() -> None:
    def opened(at: float, heard_at: float | None) -> Opened:
        return Opened(driver="d", fleet="f", slots=1, time=at, heard_at=heard_at)

    def trained(at: float, heard_at: float | None) -> Trained:
        return Trained(run="r", step=1, busy_s=1.0, time=at, heard_at=heard_at)

    old = [opened(100.0, None), trained(160.0, None), opened(9_000.0, None), trained(9_005.0, None)]
    assert wall_s(fold(old)) == 65.0
    skewed = [opened(100.0, 100.0), trained(DAY, 160.0), opened(50.0, 50.0), trained(0.0, 55.0)]
    state = fold(skewed)
    assert wall_s(state) == 65.0
    assert state.run("r").reached_at == 55.0
    ahead = fold(skewed[:3])
    assert ahead.run("r").reached_at == 50.0, "a clock that was ahead holds up no deadline"
