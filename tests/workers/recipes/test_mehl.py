"""MEHL-Soup against a plain one with flat vectors in memory and autograd, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.workers.recipes.quadratic_losses import Bench, bench
from workers.merging.recipe_driver import advance
from workers.recipes.mehl import Mehl, clipped, lr_factor
from workers.types import GramMatrices, Mix, MixGradient, Soup, Taste


def blocks(here: Bench, recipe: Mehl) -> list[list[str]]:
    """Keys of the tensors of each block, blocks without tensors included."""
    prefixes = ("", *here.context.components) if recipe.by == "component" else ("",)
    found: dict[str, list[str]] = {prefix: [] for prefix in prefixes}
    for key in here.base:
        found[max((p for p in prefixes if not p or key.startswith(p)), key=len)].append(key)
    return list(found.values())


def flat(weights: dict[str, Tensor], keys: list[str]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(weights[k].flatten() for k in keys)])


def textbook(here: Bench, recipe: Mehl, few: list[list[str]]) -> list[dict[str, Tensor]]:
    """Soups before every step, and at the end: c + sum X P, P of unit length, torch's AdamW."""
    c = {key: sum(here.members[n][key] for n in few[0]) / len(few[0]) for key in here.base}
    soups = []
    for names in few:
        parts = blocks(here, recipe)
        x = torch.zeros(len(names), len(parts), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([x], lr=recipe.lr, weight_decay=0)
        steps = recipe.epochs * -(-len(here.labels) // recipe.batch_size)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s, t=steps: lr_factor(s, t))
        for _ in range(recipe.epochs):
            for start in range(0, len(here.labels), recipe.batch_size):
                soup = _moved(here, c, x, names, parts)
                soups.append({key: tensor.detach() for key, tensor in soup.items()})
                optimizer.zero_grad()
                here.loss(soup, slice(start, start + recipe.batch_size)).backward()
                assert x.grad is not None
                if recipe.clip_grad is not None:
                    x.grad *= min(1.0, recipe.clip_grad / x.grad.norm().item())
                optimizer.step()
                rate.step()
        c = {key: t.detach() for key, t in _moved(here, c, x, names, parts).items()}
    return [*soups, c]


def _moved(
    here: Bench, c: dict[str, Tensor], x: Tensor, names: list[str], parts: list[list[str]]
) -> dict[str, Tensor]:
    soup = {}
    for column, keys in enumerate(parts):
        for key in keys:
            soup[key] = c[key]
            for row, name in enumerate(names):
                length = (flat(here.members[name], keys) - flat(c, keys)).norm()
                soup[key] = soup[key] + x[row, column] * (here.members[name][key] - c[key]) / length
    return soup


RECIPES = [
    Mehl(epochs=1, batch_size=8, lr=0.1),
    Mehl(by="global", epochs=1, batch_size=12, lr=0.1, model_batch=3),
    Mehl(model_batch=2, epochs=1, batch_size=12, lr=0.1, clip_grad=0.1),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_step_is_that_of_autograd_through_all_directions(recipe: Mehl) -> None:
    here = bench(num=4)
    here.run_recipe(recipe)
    best_first = [each.name for each in sorted(here.pool, key=lambda i: (-i.score, i.run))]
    asked = [each for each in here.asked if isinstance(each, MixGradient)]
    rng = np.random.default_rng(here.context.seed).permutation(4).tolist()
    few = [
        [best_first[i] for i in sorted(rng[at : at + recipe.model_batch])]
        for at in range(0, 4, recipe.model_batch)
    ]
    expected = textbook(here, recipe, few)
    last = [each for each in here.asked if isinstance(each, Taste)][-1].mixes[0]
    found = [here.blended(mix) for mix in [*(each.mix for each in asked), last]]
    assert len(found) == len(expected)
    moved = max(float((expected[-1][k] - expected[0][k]).abs().max()) for k in here.base)
    assert moved > 1e-4
    for soup, plain in zip(found, expected, strict=True):
        for key in here.base:
            torch.testing.assert_close(soup[key], plain[key], rtol=1e-7, atol=1e-9)


def test_the_weights_sum_to_one_and_leave_the_hull() -> None:
    here = bench()
    here.run_recipe(Mehl(epochs=2, batch_size=24, lr=5.0))
    tasted = [each.mixes[0] for each in here.asked if isinstance(each, Taste)][1:]
    rows = [[tuple(w for _, w in m.weights), *(c.weights for c in m.components)] for m in tasted]
    assert np.allclose([sum(row) for mix in rows for row in mix], 1)
    assert min(weight for mix in rows for row in mix for weight in row) < 0


def test_a_group_names_only_the_models_it_needs() -> None:
    here = bench(num=4)
    here.run_recipe(Mehl(model_batch=2, epochs=1, batch_size=24))
    asked = [each for each in here.asked if isinstance(each, MixGradient)]
    assert [len(each.mix.weights) for each in asked] == [2, 4]
    assert [weight for _, weight in asked[1].mix.weights].count(0.0) == 2
    assert [each.epoch for each in asked] == [0, 1]
    tastes = sum(isinstance(each, Taste) for each in here.asked)
    recipe = Mehl(model_batch=2, epochs=1, batch_size=24)
    assert tastes + 2 * 2 == recipe.most_tastes(4), "an epoch's slopes cost two"


def test_a_mehl_soup_is_never_worse_than_where_it_starts() -> None:
    for seed in range(2):
        here = bench(seed=seed)
        soup, _ = here.run_recipe(Mehl(epochs=3, batch_size=8, lr=1.0))
        score, nll = here.judged(soup.mix)
        start_score, start_nll = here.judged(Mix.mean(list(here.members)))
        assert soup.score == score >= start_score
        assert nll <= start_nll


def test_an_ingredient_that_equals_the_centre_gives_no_direction() -> None:
    here = bench()
    for members in (here.members["b"], here.members["c"]):
        members.update({k: here.members["a"][k] for k in here.base if k.startswith("blocks.0")})
    soup, _ = here.run_recipe(Mehl(epochs=1, batch_size=24, lr=1.0))
    asked = [each for each in here.asked if isinstance(each, Taste)][-1].mixes[0]
    frozen = next(c for c in asked.components if c.prefix == "blocks.0")
    np.testing.assert_allclose(frozen.weights, 1 / 3)
    assert soup.score is not None


def test_one_ingredient_is_its_own_soup_and_asks_nothing() -> None:
    here = bench(num=1)
    soup = advance(Mehl(), here.pool, (), here.context)
    assert isinstance(soup, Soup) and soup.mix.single == "a"


def test_a_replayed_recipe_asks_what_it_asked_before() -> None:
    here = bench()
    recipe = Mehl(epochs=1, batch_size=8, model_batch=2)
    soup, answers = here.run_recipe(recipe)
    assert isinstance(here.asked[0], GramMatrices)
    for num, asked in enumerate(here.asked):
        assert advance(recipe, here.pool[::-1], tuple(answers[:num]), here.context) == asked
    assert advance(recipe, here.pool[::-1], tuple(answers), here.context) == soup


def test_the_rate_warms_up_over_a_fifth_and_falls_as_a_cosine() -> None:
    rates = [lr_factor(step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert lr_factor(0, 1) == 1.0


def test_clipping_keeps_the_direction() -> None:
    np.testing.assert_allclose(clipped(np.array([3.0, 4.0]), 1.0), [0.6, 0.8])
    assert clipped(np.array([3.0, 4.0]), None).tolist() == [3.0, 4.0]
    assert clipped(np.zeros(2), 1.0).tolist() == [0.0, 0.0]
