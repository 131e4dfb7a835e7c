"""An experiment on S3 whose driver is killed once gives the same bytes as on a local disk."""

import os
from pathlib import Path

from orchestrator.config import uri
from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer, UninterruptedRun
from workers.storage.store import Store


def test_on_s3_a_killed_driver_continues_to_the_same_bytes(
    fork_server: ForkServer, uninterrupted: UninterruptedRun, s3_uri: str, tmp_path: Path
) -> None:
    config = str(tiny_experiment.config_file(tmp_path))
    env = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    assert fork_server.run(DriverRun(config, s3_uri, env=env, kill_after=20)).was_killed
    assert fork_server.run(DriverRun(config, s3_uri, env=env)).code == 0
    store = Store(
        uri(tiny_experiment.experiment(tmp_path, storage=s3_uri)), cache_dir=str(tmp_path / "c")
    )
    assert tiny_experiment.served(store) == uninterrupted.served
    assert [event.kind for event in tiny_experiment.events(store)].count("opened") == 2
