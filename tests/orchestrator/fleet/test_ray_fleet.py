"""A Ray fleet of several nodes: nodes that die or are bad, idle actors that die, orders taken back.

Every test starts a cluster of its own on this machine.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.commands.run import planned
from orchestrator.fleet.ray import RayFleet, open_cluster
from orchestrator.schedule import due
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import apply
from orchestrator.state.state import State
from tests.faults import tiny_experiment
from tests.ray_cluster import ray_cluster
from workers.types import AnyEvent, AnyOrder, Ordered, TrainOrder

pytestmark = pytest.mark.slow

UNIMPORTABLE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "workers.training.train":
            raise ImportError("libcuda.so.1 is missing")
sys.meta_path.insert(0, Refuse())
"""
"""A sitecustomize.py of a node whose installation is broken."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs."""
    with ray_cluster() as cluster:
        yield cluster


class Bench:
    """A fleet on a cluster, and an experiment whose base exists."""

    def __init__(self, cluster: Any, folder: Path, *overrides: str) -> None:
        experiment = tiny_experiment.experiment(folder, *tiny_experiment.LONG, *overrides)
        self.expanded = planned(experiment)
        self.fleet = RayFleet(open_cluster(experiment, cluster.address), experiment.fleet)
        self.state = State()
        for kind in ("preflighted", "base_ready"):
            (order,) = due(Moment(self.expanded, self.state))
            self.submit(order)
            self.until(lambda event, kind=kind: event.kind == kind)

    def submit(self, order: AnyOrder) -> None:
        who = {"order": order.id, "run": order.run_id, "attempt": 1}
        self.apply([Ordered(**who, what=order.kind, due_since=0.0)])
        self.fleet.submit(order, 1)

    def apply(self, events: list[AnyEvent]) -> None:
        for event in events:
            apply(self.state, event)

    def trainings(self) -> list[TrainOrder]:
        return [o for o in due(Moment(self.expanded, self.state)) if isinstance(o, TrainOrder)]

    def until(self, is_last: Callable[[AnyEvent], bool], timeout_s: float = 120) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        deadline = time.monotonic() + timeout_s
        while not any(is_last(event) for event in events):
            assert time.monotonic() < deadline, [event.kind for event in events]
            new = self.fleet.events(0.5)
            self.apply(new)
            events += new
        return events

    def wait_for(self, is_done: Callable[[], bool], timeout_s: float = 120) -> list[AnyEvent]:
        """The events until then."""
        events: list[AnyEvent] = []
        deadline = time.monotonic() + timeout_s
        while not is_done():
            assert time.monotonic() < deadline, self.fleet.waiting_for()
            events += self.fleet.events(0.5)
        self.apply(events)
        return events

    def wait_for_slots(self, count: int) -> None:
        """Wait until so many slots are open."""
        self.wait_for(lambda: self.num_open == count)

    @property
    def num_open(self) -> int:
        return sum(slot.is_open for slot in self.fleet._slots)


def test_a_node_that_dies_while_its_slots_start_costs_the_others_nothing(
    cluster: Any, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    bench = Bench(cluster, tmp_path)
    (order,) = bench.trainings()
    bench.submit(order)
    bench.until(lambda event: event.kind == "started")
    node = cluster.add_node(num_cpus=4)
    bench.wait_for(lambda: bench.fleet.num_slots == 5)
    cluster.remove_node(node, allow_graceful=False)
    events = bench.until(lambda event: event.kind == "evaluated")
    events += bench.wait_for(lambda: bench.fleet.num_slots == 1)
    assert {event.kind for event in events} <= {"evaluated", "checkpoint"}
    bench.fleet.close()


def test_a_node_on_which_no_worker_starts_is_excluded_and_the_others_work(
    cluster: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(UNIMPORTABLE)
    path = f"{broken}:{tiny_experiment.ROOT}"
    cluster.add_node(num_cpus=1)
    bench = Bench(cluster, tmp_path)
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
    (order,) = bench.trainings()
    bench.submit(order)
    events = bench.until(lambda event: event.kind == "node_excluded", 200)
    (excluded,) = [event for event in events if event.kind == "node_excluded"]
    assert "libcuda.so.1 is missing" in excluded.reason and excluded.for_s == 60
    bench.until(lambda event: event.kind == "evaluated")
    assert bench.fleet.num_slots == 1 and "failed" not in [event.kind for event in events]
    bench.fleet.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_idle_gang_whose_rank_dies_is_rebuilt_before_it_gets_an_order(
    cluster: Any, tmp_path: Path, rank: int
) -> None:
    cluster.add_node(num_cpus=2)
    bench = Bench(cluster, tmp_path, "fleet.gpus_per_run=2", "fleet.device=cpu")
    bench.wait_for_slots(1)
    (slot,) = bench.fleet._slots
    ray.kill(slot.actors[rank])
    (order,) = bench.trainings()
    bench.submit(order)  # at once: nobody has noticed yet, and nothing blocks or raises
    events = bench.until(lambda event: event.kind in ("failed", "evaluated"))
    if events[-1].kind == "evaluated":
        return bench.fleet.close()
    bench.wait_for_slots(1)
    assert slot not in bench.fleet._slots
    bench.fleet.close()


def test_an_idle_slot_that_dies_is_replaced(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    bench = Bench(cluster, tmp_path)
    bench.wait_for_slots(1)
    (slot,) = bench.fleet._slots
    ray.kill(slot.actors[0])
    assert bench.wait_for(lambda: slot not in bench.fleet._slots) == []
    bench.wait_for_slots(1)
    bench.fleet.close()


def one_slot_with_two_orders(cluster: Any, folder: Path) -> tuple[Bench, TrainOrder, TrainOrder]:
    """A fleet of one slot, which holds both orders."""
    cluster.add_node(num_cpus=1)
    bench = Bench(cluster, folder, "sweep.seeds=3")
    bench.wait_for_slots(1)
    first, second, _ = bench.trainings()
    bench.submit(first)
    bench.submit(second)
    return bench, first, second


def test_an_order_that_waits_behind_another_moves_to_a_slot_that_is_idle(
    cluster: Any, tmp_path: Path
) -> None:
    bench, first, second = one_slot_with_two_orders(cluster, tmp_path)
    (slot,) = bench.fleet._slots
    assert [held.order.id for held in slot.held] == [first.id, second.id]
    cluster.add_node(num_cpus=1)
    events = bench.until(lambda event: event.kind == "started" and event.order == second.id)
    assert [event.slot for event in events if event.order == second.id] != [slot.name]
    assert [held.order.id for held in slot.held] == [first.id]
    assert "failed" not in [event.kind for event in events]
    bench.fleet.close()


def test_a_stop_that_comes_before_an_order_begins_is_not_forgotten(
    cluster: Any, tmp_path: Path
) -> None:
    bench, first, second = one_slot_with_two_orders(cluster, tmp_path)
    bench.until(lambda event: event.kind == "started" and event.order == first.id)
    bench.fleet.interrupt("enough")
    events = bench.until(lambda e: e.kind == "interrupted" and e.order == second.id)
    assert [e.order for e in events if e.kind == "interrupted"] == [first.id, second.id]
    steps = [e.checkpoint.step for e in events if e.kind == "checkpoint" and e.order == second.id]
    assert steps and max(steps) <= 1
    bench.fleet.close()
