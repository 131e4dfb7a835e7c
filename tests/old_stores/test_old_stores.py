"""Stores of an older version: they resume, extend, report and verify."""

import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator import config
from orchestrator.cli import app
from orchestrator.commands.run import Options, RunOutcome, run_experiment
from orchestrator.driver.ledger import Ledger
from workers.storage.store import Store

pytestmark = pytest.mark.slow

TINY = """
name: tiny
data: {source: digits, image_size: 32, val_fraction: 0.1, test_fraction: 0.1}
model: {name: test_vit, kwargs: {embed_dim: 16, depth: 2, num_heads: 2}}
train: {epochs: 2, batch_size: 64, opt: sgd, lr: 0.3, hflip: 0.0, crop: [0.6, 1.0]}
sweep: {seeds: 2}
fleet: {device: cpu}
"""
STORES = ("finished", "interrupted")
MORE = ("sweep.seeds=3", "soup.recipes=[best, uniform, greedy, model_stock]")


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unpacked store that the test names."""
    with tarfile.open(Path(__file__).parent / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def run(storage: Path, *overrides: str, extend: bool = False) -> RunOutcome:
    file = storage / "tiny.yaml"
    file.write_text(TINY)
    experiment = config.load(file, [f"storage={storage}", *overrides])
    return run_experiment(experiment, Options(fleet="local", plain=True, extend=extend))


def soupfleet(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def checkpoints(storage: Path) -> set[str]:
    """Complete checkpoints of runs."""
    return {path.parent.name for path in (storage / "tiny" / "runs").rglob("manifest.json")}


def require_intact(storage: Path) -> None:
    uri = str(storage / "tiny")
    assert "finished" in soupfleet("status", uri)
    assert "the same bytes" in soupfleet("verify", uri)
    soupfleet("report", uri)
    assert (storage / "tiny" / "report.html").exists()


@pytest.mark.parametrize("storage", ["finished"], indirect=True)
def test_a_finished_store_has_nothing_left_to_do(storage: Path) -> None:
    served = Store(str(storage / "tiny")).hash("soup/model.safetensors")
    outcome = run(storage)
    assert not outcome.worked and outcome.exit_code == 0
    assert Store(str(storage / "tiny")).hash("soup/model.safetensors") == served
    require_intact(storage)


@pytest.mark.parametrize("storage", ["interrupted"], indirect=True)
def test_an_interrupted_store_goes_on_from_its_checkpoints(storage: Path) -> None:
    store = Store(str(storage / "tiny"))
    begun = len(Ledger(store).replay())
    outcome = run(storage)
    assert outcome.worked and outcome.exit_code == 0
    events = Ledger(store).replay()[begun:]
    steps = [event.step for event in events if event.kind == "evaluated"]
    assert steps == [46], "the second epoch of the second run was all that was left"
    require_intact(storage)


@pytest.mark.parametrize("storage", STORES, indirect=True)
def test_it_gains_a_run_and_a_recipe(storage: Path) -> None:
    before = checkpoints(storage)
    outcome = run(storage, *MORE, extend=True)
    assert outcome.worked and outcome.exit_code == 0 and outcome.results is not None
    assert {moment_run["status"] for moment_run in outcome.results["runs"]} == {"done"}
    assert len(outcome.results["runs"]) == 3
    assert {soup["recipe"] for soup in outcome.results["soups"]} >= {"model_stock", "greedy"}
    assert before and checkpoints(storage)
    require_intact(storage)
    assert not run(storage).worked, "the original command has nothing left to do"
