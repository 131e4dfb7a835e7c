"""A cluster of several nodes: they join and leave, and a driver releases all when it ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer, UninterruptedRun
from tests.ray_cluster import ray_cluster
from workers.storage.store import Store

pytestmark = pytest.mark.slow

LONGER = ("train.epochs=30", "merge.mode=off")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs and one node with two."""
    with ray_cluster() as cluster:
        cluster.node = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        yield cluster


@pytest.fixture(scope="module")
def longer(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The served files of the longer experiment without faults."""
    folder = tmp_path_factory.mktemp("longer")
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    assert fork_server.run(DriverRun(config, storage, overrides=LONGER)).code == 0
    return tiny_experiment.served(Store(f"{storage}/tiny"))


def _command(cluster: Any, folder: Path, *arguments: str) -> tiny_experiment.Command:
    return tiny_experiment.Command(folder, "--address", cluster.address, *arguments)


def _is_released(cluster: Any) -> bool:
    """Whether all resources are free, all actors dead and all placement groups removed."""
    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False)
    free = ray.available_resources()
    total = ray.cluster_resources()
    actors = ray._private.state.actors().values()
    groups = ray.util.placement_group_table().values()
    return (
        all(free.get(kind, 0) == total[kind] for kind in ("CPU",))
        and all(actor["State"] == "DEAD" for actor in actors)
        and all(group["state"] == "REMOVED" for group in groups)
    )


def test_a_node_lost_in_training_and_one_that_joins_change_no_byte(
    cluster: Any, longer: dict[str, bytes], tmp_path: Path
) -> None:
    with _command(cluster, tmp_path, *LONGER) as command:
        command.wait_for("evaluated", count=4)
        cluster.remove_node(cluster.node, allow_graceful=False)
        command.wait_for("failed")
        cluster.add_node(num_cpus=2)
        assert command.wait() == 0, command.output
        events = tiny_experiment.events(command.store)
        failed = [event for event in events if event.kind == "failed"]
        assert {event.error for event in failed} <= {"lost", "preempted"}
        later = {e.slot for e in events if e.kind == "started" and e.seq > failed[-1].seq}
        assert later - {"merge"}
        assert not (later & {event.slot for event in failed}) - {"merge"}
        assert tiny_experiment.served(command.store) == longer
    tiny_experiment.wait_for(lambda: _is_released(cluster), 30)


def test_a_node_that_joins_is_used(cluster: Any, longer: dict[str, bytes], tmp_path: Path) -> None:
    with _command(cluster, tmp_path, "fleet.cpus_per_run=1", *LONGER) as command:
        command.wait_for("evaluated")
        before = {
            e["slot"] for e in tiny_experiment.peek(Path(command.uri)) if e["kind"] == "started"
        }
        cluster.add_node(num_cpus=2)
        assert command.wait() == 0, command.output
        slots = {e.slot for e in tiny_experiment.events(command.store) if e.kind == "started"}
        assert slots > before
        assert tiny_experiment.served(command.store) == longer


def test_training_on_a_drained_node_moves_to_another(
    cluster: Any, longer: dict[str, bytes], tmp_path: Path
) -> None:
    with _command(cluster, tmp_path, "fleet.max_concurrent_runs=1", *LONGER) as command:
        command.wait_for("evaluated", count=4)
        cluster.add_node(num_cpus=2)
        _drain(cluster.address, cluster.node.node_id)
        command.wait_for("interrupted")
        assert command.wait() == 0, command.output
        events = tiny_experiment.events(command.store)
        assert "failed" not in [event.kind for event in events]
        trained_on = {e.slot for e in events if e.kind in ("interrupted", "trained")}
        assert len(trained_on) == 2
        assert tiny_experiment.served(command.store) == longer


def _drain(address: str, node: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "test", "--deadline-remaining-seconds", "300"]
    subprocess.run(command, check=True, env=tiny_experiment.environment(), capture_output=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_in_any_way_releases_its_resources(
    number: signal.Signals, cluster: Any, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    with _command(cluster, tmp_path) as command:
        command.wait_for("evaluated")
        command.signal(number)
        assert command.wait() == (-9 if number == signal.SIGKILL else 4), command.output
        tiny_experiment.wait_for(lambda: _is_released(cluster), 60)
    with _command(cluster, tmp_path) as command:
        assert command.wait() == 0, command.output
        assert tiny_experiment.served(command.store) == uninterrupted.served
    tiny_experiment.wait_for(lambda: _is_released(cluster), 60)
