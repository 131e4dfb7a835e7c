"""Merge orders: one question or one soup per order, from a live recipe or from all answers."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResult,
    TasteResults,
    WorkerConfig,
)

POOL = tuple(
    Ingredient(name=f"{run}/00000010", run=run, score=score)
    for run, score in {"a": 0.8, "b": 0.7, "c": 0.6}.items()
)


CONTEXT = RecipeContext(base="base/0")


@pytest.fixture
def worker(tmp_path: Path) -> WorkerContext:
    config = WorkerConfig(
        uri=str(tmp_path),
        seed=0,
        data=DataConfig(source="digits"),
        base=BaseConfig(),
        metric="top1",
        batchnorm_samples=64,
    )
    return WorkerContext(config)


@dataclass(frozen=True)
class Counting:
    """Three tastes, each of a mix that depends on the answer before; counts its calls."""

    calls: ClassVar[int] = 0

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        Counting.calls += 1
        return self._run(ingredients)

    def _run(self, ingredients: tuple[Ingredient, ...]) -> Generator[Question, Answer, Soup]:
        score = 1.0
        for _ in range(3):
            weights = tuple((i.name, score) for i in ingredients)
            answer = yield Taste(mixes=(Mix(weights=weights, divisor=score * len(weights)),))
            assert isinstance(answer, TasteResults)
            score = answer.scores[0]
        return Soup(mix=Mix.mean([ingredients[0].name]), score=score)


def question_or_soup(worker: WorkerContext, *answers: Answer, **changes: Any) -> Question | Soup:
    event = outcome(worker, *answers, **changes)
    return event.question if isinstance(event, Asked) else event.soup


def outcome(worker: WorkerContext, *answers: Answer, **changes: Any) -> Asked | Mixed:
    fields: dict[str, Any] = {
        **{"merge": "m", "recipe": "greedy", "ingredients": POOL, "context": CONTEXT},
        **changes,
    }
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


def test_a_live_recipe_is_asked_on_and_a_lost_one_replays_to_the_same_questions(
    worker: WorkerContext,
) -> None:
    Counting.calls = 0
    options = {"recipe": f"{__name__}:Counting"}
    answers, outcomes = list[Answer](), list[Question | Soup]()
    for score in (0.6, 0.7, 0.8):
        outcomes.append(question_or_soup(worker, *answers, **options))
        answers.append(TasteResults(scores=(score,)))
    outcomes.append(question_or_soup(worker, *answers, **options))
    assert Counting.calls == 1 and not worker.live_recipes
    replayed = []
    for num in range(4):
        worker.forget()
        replayed.append(question_or_soup(worker, *answers[:num], **options))
    assert replayed == outcomes
    assert Counting.calls == 5


def test_a_live_recipe_is_used_only_for_what_continues_it(worker: WorkerContext) -> None:
    Counting.calls = 0
    options = {"recipe": f"{__name__}:Counting"}
    first, other = TasteResults(scores=(0.6,)), TasteResults(scores=(0.9,))
    asked = question_or_soup(worker, first, **options)
    assert question_or_soup(worker, first, **options) == asked, "an order that is repeated"
    assert Counting.calls == 1
    assert question_or_soup(worker, other, **options) != asked, "another answer"
    fewer = question_or_soup(worker, other, ingredients=POOL[:2], **options)
    assert fewer != asked, "other ingredients"
    assert Counting.calls == 3


def test_an_unknown_recipe_is_the_users_mistake(worker: WorkerContext) -> None:
    with pytest.raises(UserError, match="unknown recipe 'greedi'; did you mean greedy"):
        outcome(worker, recipe="greedi")


def test_merging_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, workers.merging.recipe_driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
