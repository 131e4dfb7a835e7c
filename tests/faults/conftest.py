"""Fixtures of the fault tests: the fork server, and the result of a run without faults."""

from collections.abc import Iterator

import pytest

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer, UninterruptedRun
from workers.storage.store import Store


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture(scope="session")
def uninterrupted(
    fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> UninterruptedRun:
    """The tiny experiment without faults, in one process."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    status = fork_server.run(
        DriverRun(str(tiny_experiment.config_file(folder)), str(folder / "runs"))
    )
    assert status.code == 0
    return UninterruptedRun(
        tiny_experiment.served(Store(str(folder / "runs" / "tiny"))), status.writes
    )
