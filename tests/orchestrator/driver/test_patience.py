"""A store that fails for a while: the driver waits, the fleet works on, nothing is lost."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver import driver as driving
from orchestrator.driver import patience
from orchestrator.driver.driver import Driver
from orchestrator.driver.lease import Lease, LeaseLost
from orchestrator.driver.ledger import Ledger
from orchestrator.driver.patience import StoreUnavailable
from orchestrator.state.state import State
from tests.faults.failing_store import ERRORS, FailingStore, Outage
from tests.orchestrator.driver.test_driver import check, undisturbed
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet
from tests.simulator.world import World
from workers.storage.store import Store


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(patience, "MOST_PAUSE_S", 0.02)
    monkeypatch.setattr(driving, "FINISH_POLL_S", 0.0)


def failing_driver(
    world: World, outage: Outage, sentences: list[str], lease_s: float = 60.0
) -> Driver:
    """A driver whose own store fails; that of the workers does not."""
    store = FailingStore(world.store.uri, outage)
    lease = Lease(store, owner="simulation", ttl_s=lease_s)
    Lease(world.store, owner="simulation").store.delete("driver.json")
    remaining, outage.remaining = outage.remaining, 0
    lease.acquire()
    outage.remaining = remaining

    def watch(moment: Any, events: Any, heartbeats: Any, waiting_for: str | None) -> None:
        if waiting_for is not None:
            sentences.append(waiting_for)

    fleet = SimulatedFleet(world)
    return Driver(world.expanded, store, Ledger(store), lease, fleet, watch, now=world.now)


def lived(driver: Driver) -> State:
    try:
        driver.run()
        return driver.finish()
    finally:
        driver.lease.release()


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("after", [0, 3, 9, 20])
def test_an_outage_changes_nothing_and_is_named(folder: Path, kind: str, after: int) -> None:
    plan = simulated(2, epochs=2)
    calm = undisturbed(folder, plan)
    world = World.at(folder, plan)
    outage = Outage(kind, 12, is_due=lambda: len(world.store.list("ledger")) >= after)
    sentences: list[str] = []
    lived(failing_driver(world, outage, sentences))
    check(world, calm)
    assert outage.failures == 12
    assert any(ERRORS[kind][1].strerror in sentence for sentence in sentences)
    assert all("12 h" in sentence for sentence in sentences)


def test_the_fleet_works_on_while_the_ledger_cannot_be_written(folder: Path) -> None:
    world = World.at(folder, simulated(2, epochs=8))
    outage = Outage("full", 30, is_due=lambda: len(world.store.list("ledger")) >= 8)
    driver = failing_driver(world, outage, [])
    heard: list[int] = []
    original = driver._wait_for_store

    def wait(pause_s: float, sentence: str) -> None:
        original(pause_s, sentence)
        heard.append(len(driver._unread))

    driver._patience._wait = wait
    lived(driver)
    assert max(heard) > 3


def test_once_patience_is_over_the_next_driver_continues(folder: Path) -> None:
    plan = simulated(2, epochs=2, fleet={"storage_patience": 0.05 / 3600})
    calm = undisturbed(folder, plan)
    world = World.at(folder, plan)
    outage = Outage("full", 10**9, is_due=lambda: len(world.store.list("ledger")) >= 6)
    with pytest.raises(StoreUnavailable, match=r"No space left.*the same command continues"):
        lived(failing_driver(world, outage, []))
    lived(failing_driver(world, Outage("full", 0), []))
    check(world, calm)


def test_nothing_is_written_after_another_driver_took_over(folder: Path) -> None:
    """The lease expires during the outage, and a second driver takes it."""
    world = World.at(folder, simulated(2, epochs=2))
    outage = Outage("broken", 25, is_due=lambda: len(world.store.list("ledger")) >= 6)
    driver = failing_driver(world, outage, [], lease_s=0.05)
    original = driver._wait_for_store

    def wait(pause_s: float, sentence: str) -> None:
        original(pause_s, sentence)
        if outage.failures == 10:
            Lease(world.store, owner="second").acquire(take_over=True)

    driver._patience._wait = wait
    before = -1
    with pytest.raises(LeaseLost, match="second"):
        driver._open()
        while True:
            driver._turn()
            before = len(world.store.list("ledger"))
    assert len(world.store.list("ledger")) <= before + 1
    assert Lease(world.store, owner="second")._read() is not None, "release leaves it alone"


def test_a_lease_is_released_without_an_error_when_the_store_fails(folder: Path) -> None:
    store = FailingStore(str(folder / "store"), Outage("broken", 0))
    lease = Lease(store, owner="test")
    lease.acquire()
    store.outage.remaining = 5
    lease.release()
    assert Store(store.uri).exists("driver.json")


def test_an_expired_lease_is_written_and_read_back_before_anything_else(folder: Path) -> None:
    store = Store(str(folder / "store"))
    lease = Lease(store, owner="first", ttl_s=0.01)
    lease.acquire()
    lease._checked_at = lease._renewed_at = lease._renewed_at - 100
    lease.renew()
    holder = lease._read()
    assert holder is not None and holder.token == lease.token and not holder.is_dead()
    other = Lease(store, owner="second")
    other.acquire(take_over=True)
    lease._checked_at = lease._renewed_at = lease._renewed_at - 100
    with pytest.raises(LeaseLost):
        lease.renew()


def test_a_torn_file_of_our_own_attempt_is_replaced_and_one_of_another_driver_is_not(
    folder: Path,
) -> None:
    from workers.errors import UserError
    from workers.types import Stopped

    store = FailingStore(str(folder / "store"), Outage("full", 1))
    ledger, events = Ledger(store), [Stopped(reason="test")]
    with pytest.raises(OSError, match="No space"):
        ledger.append(events)
    assert store.list("ledger"), "half of it is there"
    ledger.append(events)
    assert [event.kind for event in Ledger(store).replay()] == ["stopped"]
    store.outage.remaining, store.outage.failures = 1, 5
    with pytest.raises(OSError, match="No space"):
        ledger.append(events)
    Ledger(Store(store.uri)).append([Stopped(reason="another")])
    with pytest.raises(UserError, match="another driver"):
        ledger.append(events)
