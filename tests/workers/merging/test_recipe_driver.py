"""The merge actor's order: one question or one soup per order, replayed from recorded answers."""

from pathlib import Path
from typing import Any

import pytest

from workers.config.data import DataConfig
from workers.config.model import BaseConfig
from workers.context import WorkerContext
from workers.errors import UserError
from workers.merging.recipe_driver import merge
from workers.types import (
    Answer,
    Asked,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    MergeOrder,
    Mix,
    Mixed,
    TasteResult,
    WorkerConfig,
)

POOL = tuple(
    Ingredient(name=f"{run}/00000010", run=run, score=score)
    for run, score in {"a": 0.8, "b": 0.7, "c": 0.6}.items()
)


@pytest.fixture
def worker(tmp_path: Path) -> WorkerContext:
    setting = WorkerConfig(
        uri=str(tmp_path),
        seed=0,
        data=DataConfig(source="digits"),
        base=BaseConfig(),
        metric="top1",
        batchnorm_samples=64,
    )
    return WorkerContext(setting)


def outcome(worker: WorkerContext, *answers: Answer, **changes: Any) -> Asked | Mixed:
    fields: dict[str, Any] = {"merge": "m", "recipe": "greedy", "ingredients": POOL} | changes
    (event,) = merge(MergeOrder(**fields, answers=answers), 0, worker)
    assert isinstance(event, Asked | Mixed)
    return event


def test_a_merge_asks_then_continues_from_its_answers_then_gives_its_soup(
    worker: WorkerContext,
) -> None:
    asked = outcome(worker)
    names = [each.name for each in POOL]
    assert isinstance(asked, Asked) and asked.merge == "m"
    assert asked.question == FirstAtLeast(
        mixes=(Mix.mean(names[:2]), Mix.mean([names[0], names[2]])), at_least=0.8
    )
    accepted = FirstResult(index=0, tried=(TasteResult(score=0.85, at_most=0.85, samples=9),))
    asked = outcome(worker, accepted)
    assert isinstance(asked, Asked)
    assert asked.question == FirstAtLeast(mixes=(Mix.mean(names),), at_least=0.85)
    refused = FirstResult(index=None, tried=(TasteResult(score=None, at_most=0.5, samples=3),))
    mixed = outcome(worker, accepted, refused)
    assert isinstance(mixed, Mixed)
    assert (mixed.soup.mix, mixed.soup.score) == (Mix.mean(names[:2]), 0.85)


def test_the_options_of_the_order_reach_the_recipe(worker: WorkerContext) -> None:
    asked = outcome(worker, options={"tie": "strict"})
    assert isinstance(asked, Asked) and isinstance(asked.question, FirstAtLeast)
    assert asked.question.strict


def test_an_unknown_recipe_is_the_users_mistake(worker: WorkerContext) -> None:
    with pytest.raises(UserError, match="unknown recipe 'greedi'; did you mean greedy"):
        outcome(worker, recipe="greedi")


def test_merging_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, workers.merging.recipe_driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
