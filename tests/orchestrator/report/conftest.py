import pytest

from orchestrator.report.results import collect_results
from orchestrator.schedule.moment import Moment
from tests.orchestrator.report.synthetic_analysis import Tale
from tests.orchestrator.report.synthetic_results import Story, program


@pytest.fixture(scope="package")
def told(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The whole story, to its served soup."""
    return Story(program(tmp_path_factory.mktemp("story"))).tell()


@pytest.fixture(scope="package")
def tale(told: Story) -> Tale:
    """The story with more recipes, and its analysis."""
    return Tale(collect_results(Moment(told.program, told.state)))
