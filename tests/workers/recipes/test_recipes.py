"""The table of recipes, and `best` and `uniform`."""

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from tests.workers.recipes.score_tables import Table, answer, run_recipe
from workers.errors import UserError
from workers.merging.recipe_driver import advance
from workers.recipes import RECIPES, load_recipe, most_tastes, needs_base, tie_option
from workers.recipes.greedy import Greedy
from workers.types import FirstResult, Ingredient, Mix, RecipeContext, Soup, Taste, TasteResults

POOL = (
    Ingredient(name="b/00000010", run="b", score=0.8),
    Ingredient(name="c/00000010", run="c", score=0.9),
    Ingredient(name="a/00000010", run="a", score=0.9),
)
CONTEXT = RecipeContext(base="base/0", components=("stem", "head"), num_selection=10)


@dataclass(frozen=True)
class OwnRecipe:
    """A recipe outside the table that mixes an unknown name."""

    name: str = "z"

    def __call__(self, ingredients, context):  # type: ignore[no-untyped-def]
        yield from ()
        return Soup(mix=Mix.mean([self.name]))


def test_best_takes_the_highest_score_and_the_first_run_among_equals() -> None:
    soup = advance(load_recipe("best"), POOL, (), CONTEXT)
    assert isinstance(soup, Soup)
    assert (soup.mix.single, soup.score) == ("a/00000010", 0.9)
    assert [each.accepted for each in soup.decisions] == [True, False, False]
    assert "ties go to the first run" in soup.decisions[1].reason


def test_uniform_asks_for_the_score_of_its_mix_and_takes_all_ingredients() -> None:
    recipe = load_recipe("uniform")
    mix = Mix.mean(["a/00000010", "c/00000010", "b/00000010"])
    assert advance(recipe, POOL, (), CONTEXT) == Taste(mixes=(mix,))
    soup = advance(recipe, POOL, (TasteResults(scores=(0.7,)),), CONTEXT)
    assert isinstance(soup, Soup)
    assert (soup.mix, soup.score) == (mix, 0.7)
    assert all(each.accepted for each in soup.decisions)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_order_in_which_ingredients_arrive_does_not_matter(name: str) -> None:
    asked = advance(load_recipe(name), POOL, (), CONTEXT)
    assert asked == advance(load_recipe(name), POOL[::-1], (), CONTEXT)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_without_ingredients_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least one ingredient"):
        advance(load_recipe(name), (), (), CONTEXT)


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"wise_ft", "model_stock"}))
def test_the_soup_of_one_is_that_one(name: str) -> None:
    """Except for recipes that mix in the base."""
    table = Table(seed=1, num=1)
    soup, _ = run_recipe(table, load_recipe(name))
    assert (soup.mix.single, soup.score) == (table.pool[0].name, table.pool[0].score)


def test_options_become_fields_and_a_path_names_a_recipe_outside() -> None:
    assert load_recipe("greedy", {"tie": "strict"}) == Greedy(tie="strict")
    assert load_recipe(f"{__name__}:OwnRecipe", {"name": "y"}) == OwnRecipe("y")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gredy", {}, "unknown recipe 'gredy'; did you mean greedy"),
        ("xxx", {}, "known are best, greedy, greedy_random"),
        ("greedy", {"ties": 1}, "recipe greedy has no option 'ties'; did you mean tie"),
        ("greedy", {"tie": "maybe"}, "recipe greedy, option tie: .*got 'maybe'"),
        ("best", {"tie": "strict"}, "recipe best has no option 'tie'; it has none"),
        ("no.such:Thing", {}, "cannot be imported"),
        ("workers.recipes:Thing", {}, "cannot be imported"),
        ("workers.recipes:load_recipe", {}, "no dataclass"),
    ],
)
def test_a_wrong_name_or_option_is_the_users_mistake(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(name, options)


def test_a_recipe_that_mixes_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="mixes 'z', which is none of the 4 checkpoints"):
        advance(load_recipe(f"{__name__}:OwnRecipe"), POOL, (), CONTEXT)


@dataclass(frozen=True)
class OneArgument:
    """A recipe as an older README described it."""

    def __call__(self, ingredients):  # type: ignore[no-untyped-def]
        yield from ()
        return Soup(mix=Mix.mean([ingredients[0].name]))


@dataclass(frozen=True)
class NoRecipe:
    """A dataclass that cannot be called."""


@pytest.mark.parametrize(
    ("name", "seen"), [("OneArgument", "(ingredients)"), ("NoRecipe", "called")]
)
def test_a_class_that_is_called_otherwise_is_refused_before_training(name: str, seen: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(seen)}.*__call__.self, ingredients, context"):
        load_recipe(f"{__name__}:{name}")


@dataclass(frozen=True)
class OwnTie:
    """A recipe outside the table with an option `tie`."""

    tie: str = "accept"
    needs_base: ClassVar[bool] = True

    def __call__(self, ingredients, context):  # type: ignore[no-untyped-def]
        yield from ()


def test_soup_tie_reaches_every_recipe_with_such_an_option() -> None:
    """Recorded options are part of merge ids: the default records what it always did."""
    stepwise = {"greedy", "greedy_random", "greedy_replacement", "pruned", "pruned_rounds"}
    names = [*RECIPES, f"{__name__}:OwnTie"]
    assert {name for name in names if tie_option(name, "accept")} == stepwise
    strict = {name for name in names if tie_option(name, "strict") == {"tie": "strict"}}
    assert strict == stepwise | {"manifold", f"{__name__}:OwnTie"}


def test_recipes_that_need_the_base_say_so() -> None:
    names = [*RECIPES, f"{__name__}:OwnTie"]
    assert {name for name in names if needs_base(name)} == {
        "model_stock", "wise_ft", f"{__name__}:OwnTie",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "name",
    [
        "best",
        "uniform",
        "greedy",
        "greedy_random",
        "greedy_replacement",
        "pruned",
        "pruned_rounds",
        "wise_ft",
    ],
)
def test_no_recipe_asks_for_more_than_an_estimate_counts(name: str, seed: int) -> None:
    recipe, table = load_recipe(name), Table(seed, num=6)
    _, questions = run_recipe(table, recipe)
    answers = [answer(table, question, stops_early=False) for question in questions]
    tastes = sum(len(a.tried if isinstance(a, FirstResult) else a.scores) for a in answers)
    assert tastes <= most_tastes(recipe, 6)
