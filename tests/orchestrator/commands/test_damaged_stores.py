"""Stores that lost files: training is never cleared, what can be made again is."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import cli, config
from orchestrator.commands import run, soup
from orchestrator.commands.run import Options, RunOutcome
from orchestrator.commands.soup import SoupRequest
from orchestrator.driver.lease import Lease
from orchestrator.fleet.base import Fleet
from tests.orchestrator.small_fleet import run_small, small_experiment
from workers.errors import UserError
from workers.storage import manifest
from workers.storage.store import Store

SMALL = ("sweep.seeds=2", "base.trunk_epochs=0", "train.epochs=1", "merge.mode=off")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished experiment, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    _, outcome = run_small(folder, *SMALL)
    assert outcome.exit_code == 0
    return folder


def again(finished: Path, store: Path) -> RunOutcome:
    experiment = small_experiment(finished, *SMALL, f"storage={store.parent}")
    return run.run_experiment(experiment, Options(fleet="local", plain=True))


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished store, whose report names its new place. The images stay."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    store = tmp_path / "runs" / "small"
    assert again(finished, store).repaired
    return store


def content(store: Path) -> dict[str, bytes]:
    files = (path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def _first_file_only(store: Path) -> None:
    for path in sorted((store / "ledger").iterdir())[1:]:
        path.unlink()


def _emptied(store: Path) -> None:
    _first_file_only(store)
    next((store / "ledger").iterdir()).write_bytes(b"")


LOSSES: dict[str, Callable[[Path], object]] = {
    "no config.yaml": lambda store: (store / "config.yaml").unlink(),
    "no UTF-8": lambda store: (store / "config.yaml").write_bytes(b"name: \xff\xfe\n"),
    "no ledger": lambda store: shutil.rmtree(store / "ledger"),
    "first file only": _first_file_only,
    "emptied": _emptied,
    "last file": lambda store: sorted((store / "ledger").iterdir())[8].write_text("{"),
    "newer": lambda store: sorted((store / "ledger").iterdir())[-1].write_text(
        '{"kind": "from_the_future"}\n'
    ),
    "duplicated": lambda store: shutil.copy(
        sorted((store / "ledger").iterdir())[0], store / "ledger" / "copy of 1.jsonl"
    ),
}


@pytest.mark.parametrize(
    ("verb", "loss"),
    [
        *(("run", loss) for loss in LOSSES),
        *((verb, "no ledger") for verb in ("status", "verify", "report", "finish")),
    ],
)
def test_a_store_without_its_beginning_is_refused_and_left_alone(
    finished: Path,
    store: Path,
    loss: str,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    LOSSES[loss](store)
    before = content(store)
    arguments = [str(store)]
    if verb == "run":
        overrides = [*SMALL, f"data.root={finished / 'images'}", f"storage={store.parent}"]
        arguments = [str(finished / "small.yaml"), "--fleet", "local", "--plain", *overrides]
    monkeypatch.setattr(sys, "argv", ["soupfleet", verb, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "--name" in error and "restore" in error
    assert content(store) == before


def test_a_ledger_that_lost_its_end_is_refused(finished: Path, store: Path) -> None:
    """Else the attempts that it forgot would be counted, and their files written, again."""
    for path in sorted((store / "ledger").iterdir()):
        if '"what":"train"' in path.read_text():
            break
    for later in sorted((store / "ledger").iterdir()):
        if later.name >= path.name:
            later.unlink()
    before = content(store)
    with pytest.raises(UserError, match="last files of ledger/ are missing"):
        again(finished, store)
    assert content(store) == before


def _flip(path: Path) -> None:
    first, *others = path.read_bytes()
    path.write_bytes(bytes([first ^ 1, *others]))


SERVED = ("model.safetensors", "config.json", "soup.json", "README.md")
REPORT = ("results.json", "report.html", "summary.csv")
HARMS: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: _flip(path),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize(("name", "harm"), zip(SERVED, HARMS, strict=True))
def test_a_damaged_served_file_is_made_again(
    finished: Path, store: Path, name: str, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store / "soup" / name
    whole = path.read_bytes()
    HARMS[harm](path)
    outcome = again(finished, store)
    assert outcome.exit_code == 0 and outcome.worked
    assert path.read_bytes() == whole
    assert f"soup/{name}" in capsys.readouterr().out
    assert not again(finished, store).worked


@pytest.mark.parametrize(("name", "harm"), zip(REPORT, HARMS, strict=False))
def test_a_damaged_report_is_made_again_without_a_fleet(
    finished: Path, store: Path, name: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fleet(*_: object) -> Fleet:
        raise AssertionError("the report needs no fleet")

    monkeypatch.setattr(run, "open_fleet", no_fleet)
    whole = (store / name).read_bytes()
    HARMS[harm](store / name)
    outcome = again(finished, store)
    assert outcome.exit_code == 0 and outcome.repaired == (name,)
    assert (store / name).read_bytes() == whole
    assert again(finished, store).repaired == ()


def test_an_unreadable_analysis_is_made_again(finished: Path, store: Path) -> None:
    whole = (store / "analysis.json").read_bytes()
    (store / "analysis.json").write_bytes(b"\xff{")
    assert again(finished, store).exit_code == 0
    assert (store / "analysis.json").read_bytes() == whole
    assert "no analysis.json yet" not in (store / "report.html").read_text()


@pytest.mark.parametrize("name", ["config.json", "soup.json"])
def test_a_damaged_soup_is_blended_again_before_it_is_served(
    finished: Path, store: Path, name: str
) -> None:
    """Its class names would be served as they are."""
    whole = (store / "soup" / name).read_bytes()
    for path in store.glob(f"soups/*/{name}"):
        path.write_bytes(path.read_bytes().replace(b"cat", b"dog").replace(b"top1", b"top2"))
    (store / "soup" / name).unlink()
    before = json.loads((store / "results.json").read_text())["served"]
    assert again(finished, store).exit_code == 0
    assert (store / "soup" / name).read_bytes() == whole
    assert json.loads((store / "results.json").read_text())["served"] == before


# Leftovers and strangers


def test_leftovers_of_killed_processes_do_not_refuse_and_are_cleaned_up(
    finished: Path, store: Path
) -> None:
    shutil.rmtree(store)
    store.mkdir()
    old = [store / ".probe-12ab", store / ".config.yaml.34cd.tmp"]
    for path in old:
        path.write_text("left")
        os.utime(path, (time.time() - 100, time.time() - 100))
    assert again(finished, store).exit_code == 0
    assert not any(path.exists() for path in old)
    assert not [name for name in content(store) if "probe" in name or name.endswith(".tmp")]


def test_unfinished_files_of_live_processes_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with store.writing("runs/a/weights") as sink:
        sink.write(b"half")
        (unfinished,) = (tmp_path / "store" / "runs" / "a").iterdir()
        os.utime(unfinished, (1, 1))
        store.remove_leftovers()
        assert unfinished.exists()
    assert store.read("runs/a/weights") == b"half"


@pytest.mark.parametrize("name", ["finish", "driver.json", "config.yaml"])
def test_a_folder_in_the_place_of_a_file_is_refused(finished: Path, store: Path, name: str) -> None:
    shutil.rmtree(store)
    (store / name / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name} in .* is a folder"):
        again(finished, store)
    assert [path.name for path in store.iterdir()] == [name]


# The lease comes first


def test_what_another_driver_wrote_before_the_lease_was_taken_is_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused between its first look and the lease, a driver sees a whole experiment afterwards."""
    acquire = Lease.acquire

    def late(self: Lease, take_over: bool = False) -> None:
        shutil.copytree(finished / "runs" / "small", tmp_path / "runs" / "small")
        acquire(self, take_over)

    monkeypatch.setattr(Lease, "acquire", late)
    experiment = small_experiment(finished, *SMALL, f"storage={tmp_path / 'runs'}")
    monkeypatch.setattr(Store, "probe", lambda self: None)
    outcome = run.run_experiment(experiment, Options(fleet="local", plain=True))
    assert not outcome.worked and outcome.exit_code == 0
    ours = content(Path(config.uri(experiment)))
    assert {k: v for k, v in ours.items() if "ledger" in k} == {
        k: v for k, v in content(finished / "runs" / "small").items() if "ledger" in k
    }


def test_an_interrupted_verify_ends_with_4(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "verify_files", interrupt)
    monkeypatch.setattr(sys, "argv", ["soupfleet", "verify", str(store)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4 and "stopped" in capsys.readouterr().err


def test_a_disk_that_fails_under_a_verb_is_one_sentence(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", "ledger")

    monkeypatch.setattr(Store, "sizes", fail)
    monkeypatch.setattr(sys, "argv", ["soupfleet", "report", str(store)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and "Input/output" in error


def test_out_of_a_soup_command_killed_at_its_first_writes_can_be_used_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".probe-12ab").write_text("left")
    (out / "driver.json").write_text("{}")
    request = SoupRequest((), "test_vit", ".", "uniform", str(out))
    experiment = config.read(f"name: out\nstorage: {tmp_path}\nmodel: {{name: test_vit}}\n", "test")
    soup._refuse_other_contents(experiment, request)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        soup._refuse_other_contents(experiment, request)
