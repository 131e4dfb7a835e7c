"""Checks of a sync configuration: every mistake is one sentence with a remedy."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.plan import make_plan
from orchestrator.config import Experiment
from orchestrator.experiment import sweep
from orchestrator.experiment.identity import check, identity
from tests.orchestrator.small_fleet import small_experiment
from workers.errors import UserError


def experiment(merge: dict[str, Any] | None = None, **more: Any) -> Experiment:
    tree: dict[str, Any] = {
        "name": "x",
        "data": {"source": "digits"},
        "model": {"name": "test_vit"},
        "train": {"epochs": 4},
        "sweep": {"seeds": 3},
        "merge": {"mode": "sync", **(merge or {})},
    }
    return Experiment.model_validate({**tree, **more})


@pytest.mark.parametrize(
    ("refused", "seen"),
    [
        (experiment({"every": 4}), "merge.every is 4 .*longest run has 4"),
        (experiment({"quorum": 4, "deadline_s": 1}), "merge.quorum is 4, .* 3 runs"),
        (
            experiment(
                {"quorum": 2, "deadline_s": 1},
                sweep={"space": {"model.name": ["test_vit", "test_vit2"]}},
            ),
            "1 runs of test_vit",
        ),
        (
            experiment(
                {"optimizer_state": "average"}, sweep={"space": {"train.opt": ["sgd", "adamw"]}}
            ),
            "average .* train.opt",
        ),
        (
            experiment(train={"epochs": 4, "weights": "w.safetensors"}),
            "merge.mode: sync .* w.safetensors",
        ),
    ],
)
def test_runs_that_cannot_be_merged_are_refused(refused: Experiment, seen: str) -> None:
    with pytest.raises(UserError, match=seen):
        sweep.expand(refused)


@pytest.mark.parametrize(
    ("merge", "seen"),
    [
        ({"method": "gready"}, "gready"),
        ({"method": "pull", "every": "20 steps"}, "every: 20 steps"),
        ({"mode": "observe", "method": "pull"}, "mode: sync"),
        ({"quorum": 2}, "deadline_s"),
        ({"alpha": 1.5}, "alpha"),
        ({"method": {"greedy": {"ties": 1}}}, "ties"),
    ],
)
def test_a_contradictory_section_is_refused(merge: dict[str, Any], seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        experiment(merge)


def test_no_run_can_be_added_to_runs_that_were_merged_in_training() -> None:
    old, more = experiment(), experiment(sweep={"seeds": 4})
    with pytest.raises(UserError, match="--name"):
        check(identity(old), more, extend=True)
    another = experiment(soup={"recipes": ["best", "uniform", "greedy", "pruned"]})
    check(identity(old), another, extend=True)


def test_a_period_in_steps_is_compared_with_the_images(folder: Path) -> None:
    merge = "merge={mode: sync, every: 500 steps}"
    with pytest.raises(UserError, match="merge.every is 500 steps, .* 8"):
        make_plan(small_experiment(folder, merge))
