"""Model Stock against the formula on whole tensors, and its edge cases."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.small_soups import RESNET, VIT, Pool, make_pool
from workers.errors import UserError
from workers.merging.batchnorm import statistics
from workers.merging.blend import blend
from workers.merging.gram import grams_of
from workers.merging.recipe_driver import advance
from workers.recipes import load_recipe
from workers.recipes.model_stock import pull
from workers.storage.checkpoints import open_weights
from workers.types import GramMatrices, Ingredient, Mix, RecipeContext, Soup, Taste, TasteResults

CONTEXT = RecipeContext(base="base/b")


def ingredients_of(names: tuple[str, ...]) -> tuple[Ingredient, ...]:
    return tuple(Ingredient(name=n, run=n, score=0.5 - i / 10) for i, n in enumerate(names))


def made(sources: dict[str, dict[str, Tensor]], skip: tuple[str, ...] = ()) -> Soup:
    """The soup, by asking and answering the recipe's questions."""
    names = tuple(name for name in sources if name != CONTEXT.base)
    recipe, pool = load_recipe("model_stock"), ingredients_of(names)
    assert advance(recipe, pool, (), CONTEXT) == GramMatrices(names=names, base=CONTEXT.base)
    grams = grams_of(sources, names, CONTEXT.base, skip)
    taste = advance(recipe, pool, (grams,), CONTEXT)
    assert isinstance(taste, Taste)
    soup = advance(recipe, pool, (grams, TasteResults(scores=(0.7,))), CONTEXT)
    assert isinstance(soup, Soup) and taste.mixes == (soup.mix,) and soup.score == 0.7
    return soup


def published(base: Tensor, members: list[Tensor]) -> Tensor:
    """The formula of the paper, with the mean of the pairwise cosines, on whole tensors."""
    moved = [(member.double() - base.double()).flatten() for member in members]
    num = len(members)
    pairs = [(i, j) for i in range(num) for j in range(i)]
    cosines = [float(moved[i] @ moved[j] / (moved[i].norm() * moved[j].norm())) for i, j in pairs]
    cosine = sum(cosines) / len(pairs)
    t = min(max(num * cosine / (1 + (num - 1) * cosine), 0.0), 1.0)
    mean = torch.stack([member.double() for member in members]).mean(0)
    return t * mean + (1 - t) * base.double()


@pytest.mark.parametrize("model", [VIT, RESNET], ids=lambda spec: spec.name)
def test_a_small_real_model_is_the_published_formula(model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pool: Pool = make_pool(tmp_path, model)
    members = {each.name: open_weights(pool.worker.store, each) for each in pool.members}
    base = open_weights(pool.worker.store, pool.base)
    sources = {**members, CONTEXT.base: base}
    skip = tuple(statistics(pool.worker.model(model)))
    soup = made(sources, skip)
    assert soup.mix.names == (*members, CONTEXT.base)
    blended = dict(blend(soup.mix, sources))
    for key, start in base.items():
        values = [member[key] for member in members.values()]
        if key in skip:
            if start.is_floating_point():
                mean = torch.stack([value.double() for value in values]).mean(0)
                torch.testing.assert_close(blended[key].double(), mean, rtol=1e-6, atol=1e-7)
        elif any(not torch.equal(value, start) for value in values):
            expected = published(start, values)
            torch.testing.assert_close(blended[key].double(), expected, rtol=1e-6, atol=1e-6)
    assert "of 0 tensors" not in soup.decisions[-1].reason


@given(scale=st.sampled_from([1e-30, 5e-4, 1.0, 1e10]), num=st.integers(1, 6))
def test_identical_displacements_are_kept_whole_however_small(scale: float, num: int) -> None:
    assert pull((scale,) * (num * (num + 1) // 2), num) == 1


@given(seed=st.integers(0, 1000), num=st.integers(2, 5), scale=st.sampled_from([1e-12, 1e-3, 1e6]))
def test_the_share_of_the_mean_does_not_depend_on_the_scale(
    seed: int, num: int, scale: float
) -> None:
    moved = torch.randn(num, 50, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    shares = []
    for factor in (1.0, scale):
        gram = ((moved * factor) @ (moved * factor).T).tolist()
        shares.append(pull(tuple(v for i, row in enumerate(gram) for v in row[i:]), num))
    assert shares[0] == pytest.approx(shares[1], rel=1e-9)


def test_displacements_that_point_apart_leave_the_base_and_are_counted() -> None:
    apart = {
        "base/b": {"w": torch.zeros(2), "v": torch.zeros(2)},
        "a": {"w": torch.tensor([1.0, 0.1]), "v": torch.tensor([3.0, 4.0])},
        "b": {"w": torch.tensor([-1.0, 0.1]), "v": torch.tensor([3.0, 4.0])},
    }
    soup = made(apart)
    blended = dict(blend(soup.mix, apart))
    assert blended["w"].tolist() == [0, 0] and blended["v"].tolist() == [3, 4]
    assert "1 were clamped to 0 and 0 to 1" in soup.decisions[-1].reason
    opposite = {**apart, "b": {"w": -apart["a"]["w"], "v": -apart["a"]["v"]}}
    assert dict(blend(made(opposite).mix, opposite))["v"].tolist() == [0, 0], "the pole"


def test_one_ingredient_is_itself_and_tensors_equal_to_the_base_stay() -> None:
    sources = {"base/b": {"w": torch.zeros(2)}, "a": {"w": torch.ones(2)}}
    assert made(sources).mix == Mix.mean(["a"])
    still = {name: {"w": torch.ones(2)} for name in ("base/b", "a", "b")}
    assert made(still).mix == Mix.mean(["a", "b"])


def test_it_has_no_options() -> None:
    with pytest.raises(UserError, match="model_stock has no option 'epsilon'"):
        load_recipe("model_stock", {"epsilon": 1e-6})
