"""Sync rounds on real weights: merging equal weights changes no bit."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from orchestrator.state.state import State
from tests.orchestrator.small_fleet import replayed, run_small
from workers.storage.store import Store

VIT = ["model.name=test_vit", "model.kwargs={img_size: 32}", "train.epochs=3"]
REPLICAS = ["sweep={runs: [{}, {}]}"]


def trained(folder: Path, *overrides: str) -> tuple[State, Store]:
    uri, outcome = run_small(folder, "soup.recipes=[best]", *overrides)
    assert outcome.moment.state.served is not None
    _, state, store = replayed(uri)
    return state, store


def last_weights(state: State) -> list[str]:
    """sha256 of the last checkpoint of every run, in order of their ids."""
    runs = sorted(run for run in state.runs if "-" not in run)
    return [last.sha256 for run in runs if (last := state.run(run).last) is not None]


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """The last weights of an experiment that merges nothing; trained once for all tests."""

    @cache
    def train(*overrides: str) -> list[str]:
        state, _ = trained(tmp_path_factory.mktemp("plain"), *overrides, "merge.mode=off")
        return last_weights(state)

    return train


@pytest.mark.parametrize("network", [VIT, ["train.epochs=3"]], ids=["layernorm", "batchnorm"])
@pytest.mark.parametrize("method", ["mean", "greedy", "pull"])
def test_a_single_run_is_plain_training(
    folder: Path, plain_weights: Callable[..., list[str]], network: list[str], method: str
) -> None:
    single = [*network, "sweep.seeds=1", "train.momentum=0.9"]
    synced, _ = trained(folder, *single, f"merge={{mode: sync, method: {method}}}")
    assert last_weights(synced) == plain_weights(*single)


@pytest.mark.parametrize("every", ["1", "4 steps"])
@pytest.mark.parametrize("optimizer_state", ["keep", "average"])
def test_the_mean_of_replicas_is_one_of_them(
    folder: Path, plain_weights: Callable[..., list[str]], every: str, optimizer_state: str
) -> None:
    merge = (
        f"merge={{mode: sync, method: mean, every: {every}, optimizer_state: {optimizer_state}}}"
    )
    synced, _ = trained(folder, *VIT, *REPLICAS, merge)
    (weights,) = plain_weights(*VIT, "sweep.seeds=1")
    assert last_weights(synced) == [weights, weights]


def test_a_pull_with_alpha_1_leaves_runs_independent(
    folder: Path, plain_weights: Callable[..., list[str]]
) -> None:
    pulled, _ = trained(folder, *VIT, "merge={mode: sync, method: pull, alpha: 1}")
    assert last_weights(pulled) == plain_weights(*VIT)
