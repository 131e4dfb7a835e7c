"""Learned soup against autograd over all ingredients in memory, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.recipes.quadratic_losses import Bench, bench
from workers.merging.recipe_driver import advance
from workers.recipes.gradient_descent import Adam, Iterate, best_of
from workers.recipes.learned import Learned, softmax, softmax_gradient
from workers.types import Mix, MixGradient, MixGradientResult, Soup, Taste, TasteResults


def textbook(bench: Bench, recipe: Learned, names: list[str]) -> list[list[tuple[float, ...]]]:
    """The published loop: softmax, a blend inside autograd, torch's AdamW. After every
    step the softmax weights of every component."""
    prefixes = ("", *bench.context.components) if recipe.by == "component" else ("",)
    raw = torch.zeros(len(prefixes), len(names), dtype=torch.float64, requires_grad=True)
    beta = torch.ones((), dtype=torch.float64, requires_grad=True)
    lr = 0.1 if recipe.by == "ingredient" else 0.05
    optimizer = torch.optim.AdamW([raw, beta], lr=lr, weight_decay=0)
    steps = []
    for _ in range(recipe.epochs or 0):
        for start in range(0, len(bench.labels), recipe.batch_size):
            alpha = raw.softmax(1)
            blend = {}
            for key in bench.base:
                fit = [i for i, p in enumerate(prefixes) if not p or key.startswith(p)]
                row = alpha[max(fit, key=lambda i: len(prefixes[i]))]
                terms = zip(row, names, strict=True)
                blend[key] = sum(a * bench.members[name][key] for a, name in terms)
            loss = bench.loss(blend, slice(start, start + recipe.batch_size), beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append([tuple(row) for row in raw.detach().softmax(1).tolist()])
    return steps


@pytest.mark.parametrize("by", ["ingredient", "component"])
def test_every_step_is_that_of_autograd_through_all_ingredients(by: str) -> None:
    here = bench()
    recipe = Learned(by=by, epochs=2, batch_size=10)  # type: ignore[arg-type]
    here.run_recipe(recipe)
    steps = textbook(here, recipe, [each.name for each in _best_first(here)])
    assert len(steps) == 2 * 3, "24 images are three batches, the last of 4"
    tastes = sum(isinstance(each, Taste) for each in here.asked)
    assert tastes + 2 * 2 == recipe.most_tastes(len(here.pool)), "an epoch's slopes cost two"
    asked = [each for each in here.asked if isinstance(each, MixGradient)]
    assert [(each.epoch, each.batch) for each in asked[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    for question, expected in zip(asked[1:], steps, strict=False):
        np.testing.assert_allclose(_rows(question.mix), expected, rtol=1e-9, atol=1e-12)
    last = [each for each in here.asked if isinstance(each, Taste)][-1]
    np.testing.assert_allclose(_rows(last.mixes[0]), steps[-1], rtol=1e-9, atol=1e-12)


def _best_first(here: Bench) -> list:  # type: ignore[type-arg]
    return sorted(here.pool, key=lambda each: (-each.score, each.run))


def _rows(mix: Mix) -> list[tuple[float, ...]]:
    return [tuple(w for _, w in mix.weights), *(c.weights for c in mix.components)]


@pytest.mark.parametrize("by", ["ingredient", "component"])
@pytest.mark.parametrize("seed", range(3))
def test_a_learned_soup_is_never_worse_than_the_mean(by: str, seed: int) -> None:
    here = bench(seed=seed)
    soup, _ = here.run_recipe(Learned(by=by, epochs=3, batch_size=8))  # type: ignore[arg-type]
    score, nll = here.judged(soup.mix)
    equal_score, equal_nll = here.judged(Mix.mean(list(here.members)))
    assert soup.score == score >= equal_score
    assert nll <= equal_nll
    assert nll < equal_nll, "downhill from here, in these three cases"


def test_it_begins_with_the_same_mix_as_the_uniform_recipe() -> None:
    here = bench()
    first = advance(Learned(), here.pool, (), here.context)
    assert first == Taste(mixes=(Mix.mean([each.name for each in _best_first(here)]),))


def test_decisions_contain_weights_and_the_score_of_every_epoch() -> None:
    here = bench()
    soup, _ = here.run_recipe(Learned(by="component", epochs=2, batch_size=24))
    assert [each.candidate for each in soup.decisions[-3:]] == [
        "equal weights",
        "epoch 1",
        "epoch 2",
    ]
    assert sum(each.accepted for each in soup.decisions[-3:]) == 1
    assert sorted(each.candidate for each in soup.decisions[:3]) == ["a", "b", "c"]
    num = len(here.context.components)
    assert f"on average over {num} components" in soup.decisions[0].reason
    assert "NLL" in soup.decisions[-1].reason


def test_one_ingredient_is_its_own_soup_and_asks_nothing() -> None:
    here = bench(num=1)
    soup = advance(Learned(), here.pool, (), here.context)
    assert isinstance(soup, Soup)
    assert (soup.mix.single, soup.score) == ("a", here.pool[0].score)


def test_a_replayed_recipe_asks_what_it_asked_before() -> None:
    here = bench()
    recipe = Learned(by="component", epochs=1, batch_size=8)
    soup, answers = here.run_recipe(recipe)
    for num, asked in enumerate(here.asked):
        assert advance(recipe, here.pool[::-1], tuple(answers[:num]), here.context) == asked
    assert advance(recipe, here.pool[::-1], tuple(answers), here.context) == soup


def test_a_loss_that_is_no_number_ends_the_descent_with_the_best_so_far() -> None:
    here = bench()
    start = TasteResults(scores=(0.5,), nll=(1.0,))
    broken = MixGradientResult(loss=float("nan"), weights=((1.0, 1.0, 1.0),), temperature=0.0)
    soup = advance(Learned(), here.pool, (start, broken), here.context)
    assert isinstance(soup, Soup)
    assert soup.mix == Mix.mean([each.name for each in _best_first(here)])


def test_patience_ends_a_descent_that_does_not_gain() -> None:
    here = bench()
    answers: list = [TasteResults(scores=(0.5,), nll=(1.0,))]  # type: ignore[type-arg]
    flat = MixGradientResult(loss=1.0, weights=((0.1, 0.0, 0.0),), temperature=0.0)
    for _ in range(2):
        answers += [flat, TasteResults(scores=(0.4,), nll=(1.0,))]
    recipe = Learned(epochs=9, patience=2, batch_size=24)
    assert isinstance(advance(recipe, here.pool, tuple(answers), here.context), Soup)


def _iterates(*judged: tuple[float, float]) -> list[Iterate]:
    mix, weights = Mix.mean(["a"]), np.ones((1, 1))
    return [Iterate("", mix, weights, score, nll) for score, nll in judged]


@pytest.mark.parametrize(
    ("judged", "best"),
    [
        ([(0.5, 1.0), (0.6, 0.9), (0.7, 0.8)], 2),
        ([(0.5, 1.0), (0.6, 1.1)], 0),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.9)], 1),
        ([(0.5, 1.0), (0.4, 0.5)], 0),
        ([(0.5, 1.0), (0.9, float("inf"))], 0),
        ([(0.5, float("inf")), (0.6, float("inf"))], 1),
    ],
)
def test_the_best_iterate_has_the_highest_score_without_a_higher_nll(
    judged: list[tuple[float, float]], best: int
) -> None:
    assert best_of(_iterates(*judged)) == best


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=2),
    st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=2),
)
def test_the_softmaxs_chain_rule_is_that_of_autograd(
    raw: list[list[float]], slope: list[list[float]]
) -> None:
    leaf = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
    leaf.softmax(1).backward(torch.tensor(slope, dtype=torch.float64))
    found = softmax_gradient(softmax(np.array(raw)), np.array(slope))
    assert leaf.grad is not None
    np.testing.assert_allclose(found, leaf.grad.numpy(), atol=1e-12)


def test_adam_is_torchs_adamw_without_decay() -> None:
    rng = np.random.default_rng(0)
    values, adam = rng.normal(size=5), Adam()
    leaf = torch.tensor(values, requires_grad=True)
    optimizer = torch.optim.AdamW([leaf], lr=0.05, weight_decay=0)
    for _ in range(20):
        slope = rng.normal(size=5)
        leaf.grad = torch.tensor(slope)
        optimizer.step()
        values = adam.step(values, slope, 0.05)
    np.testing.assert_allclose(values, leaf.detach().numpy(), rtol=1e-12)
