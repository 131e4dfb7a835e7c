"""Recipes on small real models, tasted as in a fleet, against plain torch on the same files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.workers.small_soups import VIT, Pool, make_pool
from workers.data import eval_pixels, normalise
from workers.merging.recipe_driver import advance
from workers.merging.taste import load_mix, taste
from workers.models.build import preprocessing
from workers.recipes import load_recipe
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.layout import checkpoint_dir
from workers.types import (
    Answer,
    Checkpoint,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    Mix,
    RecipeContext,
    Soup,
    Taste,
    Tasted,
    TasteOrder,
    TasteResult,
    TasteResults,
)

Weights = dict[str, Tensor]


@dataclass
class Bench:
    """A pool of five, a base near it, and a plain evaluation of any weights."""

    pool: Pool
    base: Checkpoint
    accuracy: Callable[[Weights], float]

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        scored = zip(self.pool.names, self.pool.scores, strict=True)
        return tuple(Ingredient(name=n, run=n.split("/")[0], score=s) for n, s in scored)

    @property
    def best_first(self) -> list[str]:
        order = sorted(self.ingredients, key=lambda each: (-each.score, each.run))
        return [each.name for each in order]

    @cached_property
    def weights(self) -> dict[str, Weights]:
        """The weights of each file, by name."""
        uri = self.pool.worker.config.uri
        return {
            each.name: load_file(f"{uri}/{checkpoint_dir(each.id)}/model.safetensors")
            for each in (*self.pool.members, self.base)
        }

    def mean(self, names: list[str]) -> Weights:
        pile = [self.weights[name] for name in names]
        return {key: torch.stack([each[key] for each in pile]).mean(0) for key in pile[0]}

    def score(self, names: list[str]) -> float:
        return self.accuracy(self.mean(names))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    pool = make_pool(tmp_path_factory.mktemp("pool"), VIT, num_members=5)
    worker = pool.worker
    net = timm.create_model(VIT.name, num_classes=10, img_size=32).eval()
    config = preprocessing(worker.model(VIT), worker.config.data)
    images = normalise(eval_pixels(worker.images, "val", config), config)
    labels = torch.from_numpy(worker.images.labels("val"))

    def accuracy(weights: Weights) -> float:
        net.load_state_dict(weights)
        with torch.inference_mode():
            return int((net(images).argmax(1) == labels).sum()) / len(labels)

    near = {key: 0.9 * tensor for key, tensor in _state(pool, 0).items()}
    return Bench(pool, write_checkpoint(worker.store, "base/near", None, 0, near), accuracy)


def _state(pool: Pool, index: int) -> Weights:
    load_mix(
        pool.worker.model(VIT),
        Mix.mean([pool.names[index]]),
        pool.cohort,
        pool.members,
        pool.worker,
    )
    return {key: tensor.clone() for key, tensor in pool.worker.model(VIT).state_dict().items()}


def made(bench: Bench, name: str, **options: object) -> tuple[Soup, Weights]:
    """The soup from orders to a worker, and its blended weights."""
    context = RecipeContext(base=bench.base.name, seed=1, num_selection=150)
    recipe, answers = load_recipe(name, options), list[Answer]()
    while not isinstance(
        outcome := advance(recipe, bench.ingredients, tuple(answers), context), Soup
    ):
        assert isinstance(outcome, FirstAtLeast | Taste)
        answers.append(_answer(bench, outcome))
    model = bench.pool.worker.model(VIT)
    places = (*bench.pool.members, bench.base)
    load_mix(model, outcome.mix, bench.pool.cohort, places, bench.pool.worker)
    return outcome, {key: tensor.clone() for key, tensor in model.state_dict().items()}


def _answer(bench: Bench, question: FirstAtLeast | Taste) -> Answer:
    if isinstance(question, Taste):
        tasted = [_tasted(bench, mix, hits=question.hits) for mix in question.mixes]
        scores = tuple(each.score for each in tasted if each.score is not None)
        hits = tuple(each.hits for each in tasted) if question.hits else ()
        return TasteResults(scores=scores, hits=hits)
    tried: list[TasteResult] = []
    for i, mix in enumerate(question.mixes):
        bar = {"at_least": question.at_least, "strict": question.strict}
        tried.append(_tasted(bench, mix, **bar))
        if tried[-1].score is not None and question.is_met_by(tried[-1].score):
            return FirstResult(index=i, tried=tuple(tried))
    return FirstResult(index=None, tried=tuple(tried))


def _tasted(bench: Bench, mix: Mix, **how: object) -> TasteResult:
    order = TasteOrder(
        cohort=bench.pool.cohort,
        mix=mix,
        ingredients=(*bench.pool.members, bench.base),
        hard_images_first=tuple(each.id for each in bench.pool.members),
        **how,
    )
    (event,) = taste(order, 0, bench.pool.worker)
    assert isinstance(event, Tasted)
    return event.tasting


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0)


def test_uniform_is_the_plain_mean(bench: Bench) -> None:
    soup, weights = made(bench, "uniform")
    assert_same(weights, bench.mean(list(bench.pool.names)))
    assert soup.score == bench.score(list(bench.pool.names))


@pytest.mark.parametrize("tie", ["accept", "strict"])
@pytest.mark.parametrize("name", ["greedy", "greedy_random"])
def test_greedy_is_the_textbooks(bench: Bench, name: str, tie: str) -> None:
    order = bench.best_first
    soup, weights = made(bench, name, tie=tie)
    if name == "greedy_random":
        recipe = load_recipe(name)
        order = [each.name for each in recipe.order(bench.ingredients, 1, 0)]  # type: ignore[union-attr]
    members, score = order[:1], bench.score(order[:1])
    for candidate in order[1:]:
        after = bench.score([*members, candidate])
        if after > score or (after == score and tie == "accept"):
            members, score = [*members, candidate], after
    assert soup.mix.names == tuple(members)
    assert soup.score == score >= max(bench.pool.scores)
    assert_same(weights, bench.mean(members))


def test_greedy_with_replacement_is_the_mean_of_a_bag(bench: Bench) -> None:
    soup, weights = made(bench, "greedy_replacement")
    order = bench.best_first
    bag, score = order[:1], bench.score(order[:1])
    for number in range(3):
        size = len(bag)
        for candidate in order[0 if number else 1 :]:
            if set(bag) == {candidate}:
                continue
            after = bench.score([*bag, candidate])
            if after >= score:
                bag, score = [*bag, candidate], after
        if len(bag) == size:
            break
    assert soup.score == score
    assert_same(weights, bench.mean(bag))


@pytest.mark.parametrize("best_removable", [False, True])
def test_pruned_is_the_textbooks(bench: Bench, best_removable: bool) -> None:
    soup, weights = made(bench, "pruned", best_removable=best_removable)
    members, best = bench.best_first, bench.best_first[0]
    score = bench.score(members)
    for candidate in members[::-1]:
        rest = [name for name in members if name != candidate]
        if rest and (candidate != best or best_removable) and bench.score(rest) >= score:
            members, score = rest, bench.score(rest)
    assert (soup.mix, soup.score) == (Mix.mean(members), score)
    assert_same(weights, bench.mean(members))


def test_pruned_in_rounds_is_the_textbooks(bench: Bench) -> None:
    soup, weights = made(bench, "pruned_rounds")
    members, score = bench.best_first, bench.score(bench.best_first)
    for _ in range(8):
        trials = [[name for name in members if name != out] for out in members[::-1]]
        good = [rest for rest in trials if rest and bench.score(rest) >= score]
        if not good:
            break
        members, score = good[0], bench.score(good[0])
    assert (soup.mix, soup.score) == (Mix.mean(members), score)
    assert_same(weights, bench.mean(members))


@pytest.mark.parametrize("of", ["best", "uniform"])
def test_wise_ft_is_the_best_point_of_a_plain_line(bench: Bench, of: str) -> None:
    soup, weights = made(bench, "wise_ft", of=of)
    base = bench.weights[bench.base.name]
    tuned = bench.mean(bench.best_first[:1] if of == "best" else bench.best_first)
    line = [
        {key: (1 - alpha / 10) * base[key] + alpha / 10 * tuned[key] for key in base}
        for alpha in range(11)
    ]
    scores = [bench.accuracy(point) for point in line]
    assert [each.after for each in soup.decisions] == scores
    assert_same(weights, line[scores.index(max(scores))])


def test_by_the_paired_test_all_of_these_belong_and_none_is_a_clear_gain(bench: Bench) -> None:
    lenient, _ = made(bench, "greedy", test="mcnemar", alpha=1e-6)
    strict, weights = made(bench, "greedy", test="mcnemar", alpha=1e-6, tie="strict")
    assert lenient.mix == Mix.mean(bench.best_first)
    assert strict.mix.single == bench.best_first[0]
    assert_same(weights, bench.weights[bench.best_first[0]])
