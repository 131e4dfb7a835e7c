"""An experiment in an object store, its driver killed once: the same bytes as on a disk."""

import os
from pathlib import Path

from orchestrator.config import uri
from tests.faults import tiny_experiment
from tests.faults.driver_processes import Life, Nursery, Undisturbed
from workers.storage.store import Store


def test_on_s3_a_killed_driver_is_followed_by_the_bytes_of_the_disk(
    nursery: Nursery, undisturbed: Undisturbed, s3_uri: str, tmp_path: Path
) -> None:
    config = str(tiny_experiment.config_file(tmp_path))
    env = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    assert nursery.live(Life(config, s3_uri, env=env, kill_after=20)).was_killed
    assert nursery.live(Life(config, s3_uri, env=env)).code == 0
    store = Store(
        uri(tiny_experiment.experiment(tmp_path, storage=s3_uri)), cache_dir=str(tmp_path / "c")
    )
    assert tiny_experiment.served(store) == undisturbed.served
    assert [event.kind for event in tiny_experiment.events(store)].count("opened") == 2
