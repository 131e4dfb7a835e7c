"""A Ray cluster of several nodes on this machine: a head without CPUs, and nodes that tests add."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.faults import tiny_experiment


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """The cluster; all its processes have ended on exit."""
    with pytest.MonkeyPatch.context() as environment:
        for key, value in tiny_experiment.environment().items():
            environment.setenv(key, value)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
