"""Storage on S3 that is not there: one sentence and exit code 2, whatever the verb."""

from pathlib import Path

import pytest

from tests.orchestrator.commands.test_foreign_stores import READERS, command
from tests.orchestrator.small_fleet import small_experiment


def places(s3_uri: str) -> dict[str, str]:
    query = s3_uri.partition("?")[2]
    return {
        "no such bucket": f"s3://no-such-bucket-xyz/sweeps?{query}",
        "nobody listens": "s3://bucket/sweeps?endpoint_override=127.0.0.1:9&scheme=http",
    }


@pytest.mark.slow  # the client repeats its requests for some seconds
@pytest.mark.parametrize("place", ["no such bucket", "nobody listens"])
@pytest.mark.parametrize("verb", ["run", "plan", *READERS])
def test_storage_that_does_not_answer_is_one_sentence(
    s3_uri: str, tmp_path: Path, place: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small_experiment(tmp_path)
    uri = places(s3_uri)[place]
    file = str(tmp_path / "small.yaml")
    data = f"data.root={tmp_path / 'images'}"
    arguments = {
        "run": [file, data, "--fleet", "local", "--storage", uri],
        "plan": [file, data, "--storage", uri],
        "logs": [uri, "run"],
    }
    assert command(verb, *arguments.get(verb, [uri])) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "s3://" in error
