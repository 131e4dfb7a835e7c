"""What the faults are measured against."""

from collections.abc import Iterator

import pytest

from tests.faults import tiny_experiment
from tests.faults.driver_processes import Life, Nursery, Undisturbed
from workers.storage.store import Store


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The tiny experiment in one go, in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    death = nursery.live(Life(str(tiny_experiment.config_file(folder)), str(folder / "runs")))
    assert death.code == 0
    return Undisturbed(tiny_experiment.served(Store(str(folder / "runs" / "tiny"))), death.writes)
