"""One suite for the local and the Ray fleet: both fulfil the protocol."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator import schedule
from orchestrator.commands import run
from orchestrator.commands.run import Options
from orchestrator.driver.lease import Lease
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.fleet.base import Fleet
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import CLOSING
from orchestrator.state.state import State
from tests.faults import tiny_experiment
from tests.simulator.experiment import then
from workers.heartbeat import Heartbeat
from workers.storage.store import Store
from workers.types import AnyEvent, AnyOrder, Failed, Ordered, TrainOrder

OVERRIDES = ("sweep.seeds=1", "train.epochs=50", "fleet.max_concurrent_runs=1", "fleet.grace_s=5")


class Bench:
    """A fleet with an experiment whose base exists, driven by hand."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.experiment = tiny_experiment.experiment(folder, *OVERRIDES)
        self.expanded: ExpandedExperiment = run.planned(self.experiment)
        self.state = State()
        self.store = Store(run.config.uri(self.experiment))
        lease = Lease(self.store, owner="bench")
        lease.acquire()
        options = Options(fleet="local" if kind == "local" else "ray")
        self.fleet: Fleet = run.open_fleet(self.experiment, options, lease)
        self._attempt = 0
        for _ in ("preflight", "base"):
            self.commit(self.perform(self.next()))

    def next(self) -> AnyOrder:
        """What is due first, whatever the fleet holds."""
        idle = replace(self.state, open={})
        return schedule.due(Moment(self.expanded, idle))[0]

    def training(self) -> TrainOrder:
        order = self.next()
        assert isinstance(order, TrainOrder)
        return order

    def commit(self, events: list[AnyEvent]) -> None:
        self.state = then(self.state, events)

    def submit(self, order: AnyOrder) -> int:
        self._attempt += 1
        ordered = Ordered(
            order=order.id,
            run=order.run_id,
            attempt=self._attempt,
            what=order.kind,
            due_since=0.0,
            time=0.0,
        )
        self.commit([ordered])
        self.fleet.submit(order, self._attempt)
        return self._attempt

    def perform(self, order: AnyOrder, timeout_s: float = 120.0) -> list[AnyEvent]:
        self.submit(order)
        return self.events_until(lambda event: event.kind in CLOSING, timeout_s)

    def events_until(
        self, is_last: Callable[[AnyEvent], bool], timeout_s: float = 120.0
    ) -> list[AnyEvent]:
        """Events up to the first for which `is_last` holds."""
        events: list[AnyEvent] = []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            events += self.fleet.events(0.5)
            if any(is_last(event) for event in events):
                return events
        raise AssertionError(f"not within {timeout_s:g} s; got {[e.kind for e in events]}")

    def wait_until_free(self) -> None:
        """Wait until the fleet would take the next order."""
        deadline = time.monotonic() + 60
        while self.fleet.capacity("slot", num_due=1) == 0:
            assert time.monotonic() < deadline, self.fleet.waiting_for()
            self.fleet.events(0.2)


@pytest.fixture(scope="module", params=["local", "ray"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as environment:
        # By default Ray's workers have low priority, and starve beside busy processes.
        environment.setenv("RAY_worker_niceness", "0")
        bench = Bench(request.param, folder)
        yield bench
        bench.fleet.close()
    assert not _ray_processes()


def _ray_processes() -> list[str]:
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    return [name for name in names if "ray" in name.lower() or "gcs" in name]


def test_events_have_order_attempt_and_slot(bench: Bench) -> None:
    bench.wait_until_free()
    order = bench.training()
    attempt = bench.submit(order)
    started, *_ = bench.events_until(lambda event: event.kind == "started")
    bench.fleet.interrupt("enough")
    bench.events_until(lambda event: event.kind == "interrupted")
    assert (started.order, started.run, started.attempt) == (order.id, order.run.id, attempt)
    assert started.slot


def test_an_order_that_it_already_holds_is_ignored(bench: Bench) -> None:
    bench.wait_until_free()
    order = bench.training()
    attempt = bench.submit(order)
    bench.fleet.submit(order, attempt + 1)
    bench.events_until(lambda event: event.kind == "started")
    bench.fleet.interrupt("enough")
    events = bench.events_until(lambda event: event.kind == "interrupted")
    assert {event.attempt for event in events} == {attempt}
    bench.wait_until_free()
    assert bench.fleet.events(0.5) == []


def test_interrupted_training_leaves_a_checkpoint_to_continue_from(bench: Bench) -> None:
    bench.wait_until_free()
    order = bench.training()
    attempt = bench.submit(order)
    bench.commit(bench.events_until(lambda event: event.kind == "started"))
    bench.fleet.interrupt("enough")
    events = bench.events_until(lambda event: event.kind == "interrupted")
    bench.commit(events)
    checkpoint = [event for event in events if event.kind == "checkpoint"][-1].checkpoint
    assert checkpoint.id.endswith(f"-{attempt}")
    again = bench.training()
    assert again.id == order.id and again.start == checkpoint
    assert 0 < checkpoint.step < order.stop_step


def test_a_cancelled_order_sends_no_more_events_and_frees_its_slot(bench: Bench) -> None:
    bench.wait_until_free()
    order = bench.training()
    bench.submit(order)
    bench.events_until(lambda event: event.kind == "started")
    bench.fleet.cancel(order.id)
    bench.wait_until_free()
    assert [event for event in bench.fleet.events(0.5) if event.order == order.id] == []


def test_an_exception_is_the_last_event_of_its_order(bench: Bench) -> None:
    bench.wait_until_free()
    order = bench.training()
    lost = order.start.model_copy(update={"name": "base/nowhere"})
    failed = bench.perform(order.model_copy(update={"start": lost}))[-1]
    assert isinstance(failed, Failed)
    assert failed.error in ("corrupt", "storage") and "base/nowhere" in failed.message
    assert "Traceback" in failed.traceback


def test_after_a_failure_the_slot_works_and_sends_heartbeats(bench: Bench) -> None:
    bench.wait_until_free()
    order = bench.training()
    bench.submit(order)
    bench.events_until(lambda event: event.kind == "started")

    def heartbeats() -> list[Heartbeat]:
        bench.fleet.events(0.2)  # a fleet collects heartbeats while it waits for events
        return bench.fleet.heartbeats()

    assert any(beat.slot for beat in tiny_experiment.wait_for(heartbeats, 60))
    bench.fleet.cancel(order.id)
