import pytest

from tests.orchestrator.report.scenario import Scenario, carry_out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """The whole experiment, served soup and analysis included."""
    return carry_out(tmp_path_factory.mktemp("scenario"))
