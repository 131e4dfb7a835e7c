"""Damaged files of a finished store: `verify` finds each, and the same command repairs or refuses.

What the repaired store serves has the same bytes as before.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.commands import run
from orchestrator.commands.verify import verify_experiment
from orchestrator.schedule.moment import Moment
from tests.faults import tiny_experiment
from tests.orchestrator.small_fleet import replayed
from workers.errors import UserError
from workers.storage.store import CorruptFile, Store

OVERRIDES = ("ensemble.stacking=true",)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    assert drive(folder) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def drive(folder: Path) -> int:
    experiment = tiny_experiment.experiment(folder, *OVERRIDES)
    return run.run_experiment(experiment, run.Options(fleet="local", plain=True)).exit_code


def problems_of(store: Path) -> list[str]:
    expanded, state, opened = replayed(str(store))
    return verify_experiment(Moment(expanded, state), opened, say=lambda line: None)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def delete(file: Path) -> None:
    file.unlink()


def swap(file: Path) -> None:
    """With a whole file of another kind."""
    shutil.copy(file.parents[len(file.parents) - 1] / "etc" / "hostname", file)


HARMS: dict[str, Callable[[Path], None]] = {
    harm.__name__: harm for harm in (flip, cut, empty, delete, swap)
}
FILES = (
    "splits.parquet",
    "analysis.json",
    "base/*/model.safetensors",
    "base/*/config.json",
    "base/*/manifest.json",
    "predictions/soup_*/test.parquet",
    "predictions/*-1/val.parquet",
    "predictions/*-1/val.outcomes.parquet",
    "ensembles/*/ensemble.json",
    "ensembles/*/stacker.safetensors",
    "soups/*/model.safetensors",
    "soups/*/config.json",
    "soups/*/soup.json",
    "soups/*/manifest.json",
    "runs/*/checkpoints/*/model.safetensors",
    "runs/*/checkpoints/*/train_state.safetensors",
    "runs/*/checkpoints/*/manifest.json",
)
SAMPLE = {
    ("flip", "splits.parquet"),
    ("delete", "base/*/model.safetensors"),
    ("flip", "predictions/soup_*/test.parquet"),
    ("empty", "ensembles/*/stacker.safetensors"),
}


@pytest.mark.parametrize(
    ("harm", "pattern"),
    [
        pytest.param(harm, file, marks=() if (harm, file) in SAMPLE else pytest.mark.slow)
        for file in FILES
        for harm in HARMS
    ],
)
def test_a_damaged_file_is_found_and_made_again(copy: Path, harm: str, pattern: str) -> None:
    store = copy / "runs" / "tiny"
    before = tiny_experiment.served(Store(str(store)))
    HARMS[harm](sorted(store.glob(pattern))[0])
    assert problems_of(store)
    assert drive(copy) == 0
    assert problems_of(store) == []
    assert tiny_experiment.served(Store(str(store))) == before
    assert drive(copy) == 0


def test_a_flipped_digit_in_the_ledger_is_found(copy: Path) -> None:
    store = copy / "runs" / "tiny"
    file = next(f for f in sorted(store.glob("ledger/*")) if b'"busy_s":0.' in f.read_bytes())
    file.write_bytes(file.read_bytes().replace(b'"busy_s":0.', b'"busy_s":1.', 1))
    with pytest.raises(CorruptFile, match="checksum"):
        problems_of(store)


def test_other_images_are_refused_and_the_restored_file_is_taken(copy: Path) -> None:
    store = copy / "runs" / "tiny"
    content = (store / "splits.parquet").read_bytes()
    (store / "splits.parquet").unlink()
    # The seed decides the split, so preflight of another seed stands for other images.
    with pytest.MonkeyPatch.context() as patch:
        from workers import preflight

        scan = preflight.scan
        patch.setattr(preflight, "scan", lambda data, seed, touch: scan(data, seed + 1, touch))
        with pytest.raises(UserError, match="not those that the experiment began with"):
            drive(copy)
    (store / "splits.parquet").write_bytes(content)
    assert drive(copy) == 0 and problems_of(store) == []


def test_labels_that_moved_in_predictions_do_not_reach_the_comparison(copy: Path) -> None:
    """A checkpoint lost on the way: several files of a member are damaged at once."""
    store = copy / "runs" / "tiny"
    for file in store.glob("predictions/*/*.parquet"):
        flip(file)
    delete(store / "ensembles" / "soft_voting" / "ensemble.json")
    assert drive(copy) == 0 and problems_of(store) == []
