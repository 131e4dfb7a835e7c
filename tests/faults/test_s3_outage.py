"""An S3 store that answers 503 for a while: its driver waits, says so, and loses nothing."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver.driver import Driver
from orchestrator.driver.lease import Lease
from orchestrator.driver.ledger import Ledger
from orchestrator.state.reducers import fold
from tests.faults.s3_proxy import S3Proxy
from tests.orchestrator.driver.test_driver import outcome, undisturbed
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet
from tests.simulator.world import World
from workers.storage.store import Store


@pytest.mark.slow
def test_a_driver_outlives_an_s3_that_answers_503(
    s3_endpoint: str, s3_uri: str, tmp_path: Path
) -> None:
    plan = simulated(2, epochs=2)
    calm = undisturbed(tmp_path, plan, slots=2)
    sentences: list[str] = []
    with S3Proxy(s3_endpoint) as proxy:
        store = Store(s3_uri.replace(s3_endpoint, proxy.endpoint), str(tmp_path / "cache"))
        store = store.child("simulated")
        world = World.at(tmp_path, plan, writes=False)
        lease = Lease(store, owner="test")
        lease.acquire()

        def watch(moment: Any, events: Any, heartbeats: Any, waiting_for: str | None) -> None:
            if moment.state.last_seq > 20 and not proxy.num_refused and not proxy.is_out:
                proxy.fail_for(20.0)
            if waiting_for is not None:
                sentences.append(waiting_for)

        fleet = SimulatedFleet(world)
        driver = Driver(plan, store, Ledger(store), lease, fleet, watch, now=world.now)
        driver.run()
        driver.finish()
        lease.release()
        state = fold(Ledger(store).replay())
    assert proxy.num_refused > 0 and sentences
    assert "12 h" in sentences[0]
    assert outcome(state) == outcome(calm)
