"""Sorted greedy of many models: images forwarded and time, against the textbook loop.

    python -m tests.benchmarks.greedy_tastes [--count 16]

Both use the same decoded images in the same batches with one thread. The textbook forwards all of
them for every candidate. The members must be equal. With BatchNorm every taste also needs a full
pass to recompute statistics, so less time is saved.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.workers.small_soups import RESNET, VIT, Pool, make_pool
from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.merging.recipe_driver import advance
from workers.merging.taste import taste
from workers.recipes import load_recipe
from workers.types import (
    Answer,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    Mix,
    RecipeContext,
    Soup,
    Tasted,
    TasteOrder,
    TasteResult,
)

DATA = DataConfig(source="digits", image_size=32, val_fraction=0.6, test_fraction=0.1)
NUM_VAL = 1024


def measure(model: ModelConfig, count: int = 16) -> dict[str, object]:
    """Seconds and images of both, their ratios, and whether the members are equal."""
    with tempfile.TemporaryDirectory() as root:
        pool = make_pool(Path(root), model, count, DATA, NUM_VAL)
        _tasted(pool, Mix.mean(pool.names[:2]), None)  # warm up: pixels are decoded, files hashed
        members, textbook = _greedy(pool, stops_early=False)
        same, ours = _greedy(pool, stops_early=True)
    return {
        "model": model.name,
        "members": len(members),
        "same_members": members == same,
        "samples": ours[0],
        "samples_ratio": ours[0] / textbook[0],
        "textbook_s": textbook[1],
        "ours_s": ours[1],
        "speedup": textbook[1] / ours[1],
    }


def _greedy(pool: Pool, stops_early: bool) -> tuple[tuple[str, ...], tuple[int, float]]:
    """Members, and images forwarded with seconds."""
    ingredients = tuple(
        Ingredient(name=name, run=name.split("/")[0], score=score)
        for name, score in zip(pool.names, pool.scores, strict=True)
    )
    context = RecipeContext(base=pool.base.name)
    began, samples, answers = time.perf_counter(), 0, list[Answer]()
    while True:
        outcome = advance(load_recipe("greedy"), ingredients, tuple(answers), context)
        if isinstance(outcome, Soup):
            return outcome.mix.names, (samples, time.perf_counter() - began)
        assert isinstance(outcome, FirstAtLeast)
        answer = _first(pool, outcome, stops_early)
        samples += sum(result.samples for result in answer.tried)
        answers.append(answer)


def _first(pool: Pool, question: FirstAtLeast, stops_early: bool) -> FirstResult:
    tried: list[TasteResult] = []
    for index, mix in enumerate(question.mixes):
        tried.append(_tasted(pool, mix, question.at_least if stops_early else None))
        score = tried[-1].score
        if score is not None and question.is_met_by(score):
            return FirstResult(index=index, tried=tuple(tried))
    return FirstResult(index=None, tried=tuple(tried))


def _tasted(pool: Pool, mix: Mix, at_least: float | None) -> TasteResult:
    order = TasteOrder(
        cohort=pool.cohort,
        mix=mix,
        ingredients=pool.members,
        hard_images_first=tuple(member.id for member in pool.members),
        at_least=at_least,
    )
    (event,) = taste(order, 0, pool.worker)
    assert isinstance(event, Tasted)
    return event.tasting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=16)
    count = parser.parse_args().count
    for model in (VIT, RESNET):
        for name, value in measure(model, count).items():
            print(
                f"{name:>14}  {value:.4g}" if isinstance(value, float) else f"{name:>14}  {value}"
            )


if __name__ == "__main__":
    main()
