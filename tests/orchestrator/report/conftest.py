import pytest

from tests.orchestrator.report.story import Story, program


@pytest.fixture(scope="package")
def told(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The whole story, to its served soup."""
    return Story(program(tmp_path_factory.mktemp("story"))).tell()
