"""A thousand simulated runs through the real driver, ledger and schedule.

    python -m tests.benchmarks.thousand_runs [--runs 1000] [--slots 16] [--s3] [--rules]

Only the slots are simulated: a call returns at most one event per slot, as with a busy fleet, and
recipes of the merge actor run in this process. Events per second are those of the ledger, by the
wall clock and by CPU time of this process, which is fairer on a busy machine. Memory is that of
this process when a tenth, half and all of the training is done.
"""

import argparse
import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from orchestrator import schedule
from orchestrator.driver.driver import Driver
from orchestrator.driver.lease import Lease
from orchestrator.driver.ledger import Ledger
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet
from tests.simulator.world import World
from workers.storage.store import Store
from workers.types import AnyEvent

MARKS = (0.1, 0.5, 1.0)


class TimedLedger(Ledger):
    """Measures the time of appends."""

    seconds = 0.0
    groups = 0

    def append(self, events: list[AnyEvent]) -> list[AnyEvent]:
        began = time.perf_counter()
        try:
            return super().append(events)
        finally:
            self.seconds += time.perf_counter() - began
            self.groups += bool(events)


class ForgetfulFleet(SimulatedFleet):
    """Drops its records for tests, which would count as memory of the driver."""

    def events(self, timeout_s: float) -> list[AnyEvent]:
        self.submitted.clear()
        self.world.performed.clear()
        return super().events(timeout_s)


class Gauge:
    """Memory and time when given shares of the training are done."""

    def __init__(self, world: World, epochs: int) -> None:
        self.marks: dict[float, tuple[float, float]] = {}
        """Share trained -> (MiB, seconds)."""
        self._process = psutil.Process()
        self._total = len(world.expanded.runs) * epochs
        self._trained = 0
        self._began = time.perf_counter()

    def watch(self, moment: Moment, events: list[AnyEvent], *_: Any) -> None:
        self._trained += sum(event.kind == "checkpoint" for event in events)
        for mark in MARKS:
            if mark not in self.marks and self._trained >= mark * self._total:
                mib = self._process.memory_info().rss / 2**20
                self.marks[mark] = (mib, time.perf_counter() - self._began)


def measure(
    runs: int = 1000,
    epochs: int = 5,
    slots: int = 16,
    folder: str | None = None,
    uri: str | None = None,
    sections: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Events per second, their costs, and memory during training."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        store = Store(uri or f"{root}/store")
        plan = simulated(runs, epochs, **(sections or {}))
        world = World(plan, store, writes=False)
        lease = Lease(store, owner="benchmark")
        lease.acquire()
        ledger, gauge = TimedLedger(store), Gauge(world, epochs)
        fleet = ForgetfulFleet(world, slots)
        driver = Driver(plan, store, ledger, lease, fleet, gauge.watch, now=world.now)
        began, cpu_began = time.perf_counter(), time.process_time()
        driver.run()
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        num_events = driver.state.last_seq + 1
        replayed = time.perf_counter()
        Ledger(store).replay()
        replay_s = time.perf_counter() - replayed
    return {
        "runs": runs,
        "slots": slots,
        "events": num_events,
        "seconds": seconds,
        "events_per_s": num_events / seconds,
        "events_per_cpu_s": num_events / cpu_s,
        "ledger_share": ledger.seconds / seconds,
        "events_per_write": num_events / ledger.groups,
        "replay_s": replay_s,
        **{f"mib_at_{mark:.0%}": gauge.marks[mark][0] for mark in MARKS},
        "memory_growth": gauge.marks[1.0][0] / gauge.marks[0.1][0],
    }


def rule_costs(runs: int = 1000, slots: int = 16) -> dict[str, float]:
    """Milliseconds of each rule, asked alone and anew, on a fleet that is half trained."""
    expanded, state = half_trained(runs, slots)
    state = replace(state, open={})
    costs = {
        f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}": _ms(
            state,
            lambda anew, rule=rule: tuple(rule(Moment(expanded, anew))),  # type: ignore[misc]
        )
        for rule in schedule.RULES
    }
    costs["due"] = _ms(state, lambda anew: schedule.due(Moment(expanded, anew)))
    costs["decisions"] = _ms(state, lambda anew: schedule.decisions(Moment(expanded, anew), 0.0))
    return costs


def half_trained(runs: int, slots: int) -> tuple[ExpandedExperiment, State]:
    with tempfile.TemporaryDirectory() as root:
        world = World(simulated(runs, 5), Store(f"{root}/store"), writes=False)
        fleet = SimulatedFleet(world, slots)
        lease = Lease(world.store, owner="benchmark")
        lease.acquire()
        driver = Driver(
            world.expanded, world.store, MemoryLedger(world.store), lease, fleet, lambda *_: None
        )
        driver._open()
        while sum(run.trained_to > 0 for run in driver.state.runs.values()) < runs // 2:
            driver._turn()
    return world.expanded, driver.state


class MemoryLedger(Ledger):
    """Numbers events and forgets them."""

    def append(self, events: list[AnyEvent]) -> list[AnyEvent]:
        first = self._next or 0
        self._next = first + len(events)
        return [e.model_copy(update={"seq": first + i}) for i, e in enumerate(events)]


def _ms(state: State, ask: Callable[[State], object], times: int = 5) -> float:
    """Mean over states that are equal but not the same, so that nothing is remembered."""
    anew = [replace(state, runs=dict(state.runs), open=dict(state.open)) for _ in range(times)]
    began = time.perf_counter()
    for copy in anew:
        ask(copy)
    return (time.perf_counter() - began) / times * 1e3


@contextlib.contextmanager
def moto_uri() -> Iterator[str]:
    """A fresh bucket of an S3 server in this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        os.environ.pop(proxy, None)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}/thousand?endpoint_override={host}:{port}&scheme=http"
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--rules", action="store_true")
    asked = vars(parser.parse_args())
    wants_rules, wants_s3 = asked.pop("rules"), asked.pop("s3")
    if wants_rules:
        _show(rule_costs(asked["runs"], asked["slots"]), "ms")
        return
    with contextlib.ExitStack() as stack:
        if wants_s3:
            asked["uri"] = stack.enter_context(moto_uri())
        _show(measure(**asked))


def _show(figures: dict[str, float], unit: str = "") -> None:
    for name, value in figures.items():
        print(f"{name:>20}  {value:.4g} {unit}")


if __name__ == "__main__":
    main()
