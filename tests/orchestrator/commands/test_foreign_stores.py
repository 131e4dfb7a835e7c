"""Verbs on stores that somebody else made: nothing is imported, no secret is kept, one sentence."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator import cli, config
from orchestrator.commands.run import Options, run_experiment
from tests.orchestrator.small_fleet import run_small, small_experiment
from workers.errors import UserError
from workers.storage.layout import CONFIG, ENV
from workers.storage.store import Store

SECRET = "wJalrXUtnFEMI"
READERS = ("status", "report", "verify", "finish", "logs")
MODULE = "planted_recipe"
PLANTED = """
import pathlib
pathlib.Path({mark!r}).touch()
from workers.recipes import Uniform
class Planted(Uniform):
    pass
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("finished")
    return run_small(folder, "base.trunk_epochs=0", f"fleet.env={{SOUPFLEET_TEST: {SECRET}}}")[0]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once the planted module was imported."""
    mark = tmp_path / "imported"
    (tmp_path / f"{MODULE}.py").write_text(PLANTED.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    sys.modules.pop(MODULE, None)


def command(*arguments: str) -> int:
    """Exit code of the command line in this process."""
    before, sys.argv = sys.argv, ["soupfleet", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def copied(uri: str, folder: Path, **changes: object) -> str:
    """A copy of the store whose config.yaml has other sections."""
    source, copy = Store(uri), Store(str(folder / "copy"))
    for path in source.list():
        copy.put(source.fetch(path), path)
    tree = yaml.safe_load(source.read(CONFIG)) | changes
    copy.write(CONFIG, yaml.safe_dump(tree).encode())
    return copy.uri


@pytest.mark.parametrize("verb", READERS)
def test_a_verb_that_reads_imports_nothing_that_the_store_names(
    finished: str, tmp_path: Path, mark: Path, verb: str
) -> None:
    uri = copied(
        finished,
        tmp_path,
        soup={"recipes": ["best", f"{MODULE}:Planted"], "tie": "strict", "batchnorm_samples": 16},
    )
    run = Store(uri).list("runs")[0].split("/")[1]
    expected = 2 if verb == "verify" else 0  # the report is not of this configuration
    assert command(verb, uri, *([run] if verb == "logs" else [])) == expected
    assert not mark.exists() and MODULE not in sys.modules


def test_loading_a_config_names_the_module_before_it_is_imported(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_experiment(tmp_path, f"soup.recipes=[{MODULE}:Planted]")
    assert mark.exists()
    assert f"Importing the recipe module {MODULE}" in capsys.readouterr().err


def test_a_module_that_fails_is_named_in_one_sentence(tmp_path: Path, mark: Path) -> None:
    (tmp_path / f"{MODULE}.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"cannot be imported \(division by zero\)"):
        small_experiment(tmp_path, f"soup.recipes=[{MODULE}:Planted]")


def test_values_of_the_environment_never_reach_the_store(finished: str) -> None:
    store = Store(finished)
    assert not [path for path in store.list() if SECRET.encode() in store.read(path)]
    assert "SOUPFLEET_TEST: ${SOUPFLEET_TEST}" in store.read(CONFIG).decode()


def test_a_restart_takes_the_environment_from_its_config_or_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("base.trunk_epochs=0", "sweep.seeds=1", "train.epochs=1")
    uri, _ = run_small(tmp_path, *short, f"fleet.env={{SOUPFLEET_TEST: {SECRET}}}")
    longer = (*short[:1], "sweep.seeds=2", "train.epochs=1")
    monkeypatch.delenv("SOUPFLEET_TEST", raising=False)
    with pytest.raises(UserError, match=r"fleet\.env\.SOUPFLEET_TEST is \$\{SOUPFLEET_TEST\}"):
        run_small(tmp_path, *longer, extend=True)
    monkeypatch.setenv("SOUPFLEET_TEST", "other")
    assert run_small(tmp_path, *longer, extend=True)[1].exit_code == 0
    assert SECRET not in capsys.readouterr().out
    assert SECRET.encode() not in Store(uri).read(CONFIG)


def test_an_old_store_with_values_is_read_and_does_not_show_them(
    finished: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = config.read(Store(finished).read(CONFIG).decode(), "stored")
    fleet = {"env": {"SOUPFLEET_TEST": SECRET}}
    uri = copied(finished, tmp_path, fleet=fleet, storage=str(tmp_path), name="copy")
    again = experiment.model_copy(update={"storage": str(tmp_path), "name": "copy"})
    assert run_experiment(again, Options(fleet="local", plain=True)).exit_code == 0
    assert command("status", uri) == 0
    assert SECRET not in capsys.readouterr().out


def test_credentials_of_the_command_are_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "x.yaml", f"data.root=s3://key:{SECRET}@b/d", f"fleet.env.K={SECRET}"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--storage", f"s3://key:{SECRET}@b/s?token=t"])
    uri, _ = run_small(tmp_path, "base.trunk_epochs=0", "sweep.seeds=1", "train.epochs=1")
    recorded = json.loads(Store(uri).read(ENV))["command"]
    assert recorded[2:] == ["data.root=s3://b/d", "fleet.env.K=...", "--storage", "s3://b/s"]


@pytest.mark.parametrize(
    "place", ["s3://", "gs://", "~nosuchuser/x", "hdfs://nowhere:1/x", "a" * 300, "/dev/null/x"]
)
@pytest.mark.parametrize("verb", READERS)
def test_a_place_that_cannot_be_opened_is_one_sentence(
    place: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(verb, place, *(["run"] if verb == "logs" else [])) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_config_of_bytes_that_are_no_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(b"\xff\xfe")
    assert command("status", str(tmp_path)) == 2


@pytest.mark.parametrize("address", ["256.1.1.1:x", "host:99999", "host", "h\u00b2:\u00b2"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    from orchestrator.fleet.address import require_head

    with pytest.raises(UserError, match="write local, auto or HOST:PORT"):
        require_head(address)
