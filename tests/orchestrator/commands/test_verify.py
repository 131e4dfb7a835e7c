"""Verify: a finished experiment has no problem, and every changed byte is found."""

import shutil
from pathlib import Path

import pytest
import torch

from orchestrator.commands.verify import committed_checkpoints, verify_experiment
from orchestrator.schedule.moment import Moment
from tests.orchestrator.small_fleet import replayed, run_small
from workers.storage.layout import SERVED, WEIGHTS, checkpoint_dir


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    uri, outcome = run_small(tmp_path_factory.mktemp("finished"), "soup.serve=uniform")
    assert outcome.exit_code == 0
    return Path(uri)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def problems_of(uri: Path) -> list[str]:
    expanded, state, store = replayed(str(uri))
    return verify_experiment(Moment(expanded, state), store, say=lambda line: None)


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_finished_experiment_verifies_and_lists_every_checkpoint(finished: Path) -> None:
    expanded, state, store = replayed(str(finished))
    assert state.served is not None and state.served.soup is not None
    assert len(state.soups[state.served.soup].name) and state.retired
    lines: list[str] = []
    assert verify_experiment(Moment(expanded, state), store, lines.append) == []
    names = [checkpoint.id for checkpoint in committed_checkpoints(state)]
    assert len(names) >= 3 + 3 + 2 and all(any(name in line for line in lines) for name in names)
    assert "same bytes" in lines[-1]


def test_a_moved_experiment_verifies(copy: Path) -> None:
    assert problems_of(copy) == []


def test_the_soup_is_blended_with_the_threads_of_the_experiment(finished: Path) -> None:
    """Another number of threads sums in another order; the bytes would differ."""
    torch.set_num_threads(2)
    assert problems_of(finished) == []
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("kind", ["base", "run", "soup"])
def test_a_flipped_bit_in_any_checkpoint_is_found(copy: Path, kind: str) -> None:
    _, state, _ = replayed(str(copy))
    first = {
        "base": next(iter(state.bases.values())),
        "run": next(run for run in state.runs.values() if run.scored).checkpoints[0].checkpoint,
        "soup": next(iter(state.soups.values())),
    }[kind]
    flip_last_bit(copy / checkpoint_dir(first.id) / WEIGHTS)
    problems = problems_of(copy)
    assert any(checkpoint_dir(first.id) in problem for problem in problems)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "soup.json"])
def test_a_served_folder_that_differs_is_found(copy: Path, name: str) -> None:
    flip_last_bit(copy / SERVED / name)
    (problem,) = problems_of(copy)
    assert f"{SERVED}/{name}" in problem


def test_a_missing_served_file_is_found(copy: Path) -> None:
    (copy / SERVED / WEIGHTS).unlink()
    (problem,) = problems_of(copy)
    assert "is missing" in problem


def test_a_checkpoint_swapped_with_its_manifest_is_found(copy: Path) -> None:
    """Complete in itself, but not the checkpoint in the ledger."""
    _, state, _ = replayed(str(copy))
    one, other = list(state.soups.values())[:2]
    folder = copy / checkpoint_dir(one.id)
    shutil.rmtree(folder)
    shutil.copytree(copy / checkpoint_dir(other.id), folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(other.name, one.name))
    assert any("manifest" in problem and "ledger" in problem for problem in problems_of(copy))


def test_a_soup_that_differs_from_its_mix_is_found(copy: Path) -> None:
    """Files and manifest agree; only blending the mix again shows the difference."""
    expanded, state, store = replayed(str(copy))
    assert state.served is not None and state.served.soup is not None
    served = state.soups[state.served.soup]
    changed = served.model_copy(update={"sha256": "0" * 64})
    soups = {**state.soups, served.name: changed}
    other = type(state)(**{**vars(state), "soups": soups})
    problems = verify_experiment(Moment(expanded, other), store, say=lambda line: None)
    assert any("from its mix" in problem and "0" * 12 in problem for problem in problems)


def test_a_soup_without_its_members_cannot_be_blended_again(copy: Path) -> None:
    _, state, _ = replayed(str(copy))
    member = next(run for run in state.runs.values() if run.scored).checkpoints[-1].checkpoint
    shutil.rmtree(copy / "runs")
    problems = problems_of(copy)
    assert any(checkpoint_dir(member.id) in problem for problem in problems)
    assert any("cannot be" in problem and "from its mix" in problem for problem in problems)
