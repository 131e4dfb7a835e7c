"""Recipes: which ingredients, in which proportion. A file each; this is the table of names.

A recipe is a frozen dataclass whose fields are its YAML options. Called with ingredients it is a
generator: it yields questions, is sent their answers, and returns a soup. It never sees a tensor,
a file, or any split but the selection split:

    recipe(ingredients) --Taste | First | Geometry | Gradient--> driver --orders--> slots
                        <--Tastings | Found | Grams | Slope----

A recipe that must know the base, the model's components or the seed takes a second argument, the
`RecipeContext`. One that looks for its soup along a way from one model to another may say so by a
method `path` of the same arguments, `((where on the way, mix), ...)`: what lies on it is scored for
the report once everything is chosen.
"""

import difflib
import importlib
import inspect
from collections.abc import Generator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from workers.errors import UserError
from workers.recipes.best import Best
from workers.recipes.greedy import Greedy
from workers.recipes.greedy_random import GreedyRandom
from workers.recipes.greedy_replacement import GreedyReplacement
from workers.recipes.learned import Learned
from workers.recipes.manifold import Manifold
from workers.recipes.mehl import Mehl
from workers.recipes.model_stock import ModelStock
from workers.recipes.pruned import Pruned, PrunedRounds
from workers.recipes.uniform import Uniform
from workers.recipes.wise_ft import WiseFt
from workers.types import Answer, Ingredient, Mix, Question, RecipeContext, Soup

RECIPES: dict[str, type] = {
    "best": Best,
    "uniform": Uniform,
    "greedy": Greedy,
    "greedy_random": GreedyRandom,
    "greedy_replacement": GreedyReplacement,
    "pruned": Pruned,
    "pruned_rounds": PrunedRounds,
    "model_stock": ModelStock,
    "wise_ft": WiseFt,
    "learned": Learned,
    "mehl": Mehl,
    "manifold": Manifold,
}


RecipeRun = Generator[Question, Answer, Soup]


class Recipe(Protocol):
    """Asks until it knows its soup. The same answers must lead to the same questions."""

    def __call__(self, ingredients: tuple[Ingredient, ...], /) -> RecipeRun: ...


class KitchenRecipe(Protocol):
    """Likewise, of a recipe that needs to know more than its ingredients."""

    def __call__(
        self, ingredients: tuple[Ingredient, ...], kitchen: RecipeContext, /
    ) -> RecipeRun: ...


AnyRecipe = Recipe | KitchenRecipe


def most_tastes(recipe: AnyRecipe, count: int) -> int:
    """How many passes over the selection split the recipe can ask for with `count` ingredients;
    one for each where it does not say."""
    says: Any = getattr(recipe, "most_tastes", None)
    return count if says is None else int(says(count))


Path = tuple[tuple[float, Mix], ...]
"""(where on the way, mix), in order."""


def path_of(recipe: AnyRecipe, ingredients: tuple[Ingredient, ...], kitchen: RecipeContext) -> Path:
    """The way along which the recipe looks for its soup; empty for one that has none."""
    says: Any = getattr(recipe, "path", None)
    return () if says is None else tuple(says(ingredients, kitchen))


def start(
    recipe: AnyRecipe, ingredients: tuple[Ingredient, ...], kitchen: RecipeContext | None = None
) -> RecipeRun:
    """The recipe as a generator, with the kitchen if it takes one.

    Raises ValueError for a recipe that needs a kitchen where there is none.
    """
    asks: Any = recipe
    if len(inspect.signature(asks).parameters) < 2:
        asking: RecipeRun = asks(ingredients)
        return asking
    if kitchen is None:
        raise ValueError(f"{type(recipe).__name__} takes a kitchen, and there is none")
    asking = asks(ingredients, kitchen)
    return asking


def load_recipe(name: str, options: dict[str, Any] | None = None) -> AnyRecipe:
    """The recipe of that name, or of that path `package.module:Class`, with its options.

    Raises UserError for a name or an option that does not exist, and for a value that does not fit.
    """
    recipe = _imported(name) if ":" in name else RECIPES.get(name)
    if recipe is None:
        raise UserError(f"unknown recipe {name!r}; {_nearest(name, list(RECIPES))}")
    for option in options or {}:
        _check_option(name, recipe, option)
    try:
        loaded: AnyRecipe = TypeAdapter(recipe).validate_python(options or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        place = f"recipe {name}, option {where}" if where else f"recipe {name}"
        raise UserError(f"{place}: {first['msg']}, got {first['input']!r}") from None
    return loaded


def _imported(path: str) -> type:
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(
            f"recipe {path!r} cannot be imported ({error}); write package.module:Class of an "
            "importable module"
        ) from error
    if not is_dataclass(found):
        raise UserError(f"recipe {path!r} is no dataclass; decorate it with dataclass(frozen=True)")
    assert isinstance(found, type)
    return found


def _check_option(name: str, recipe: type, option: str) -> None:
    known = [field.name for field in fields(recipe)]
    if option not in known:
        raise UserError(f"recipe {name} has no option {option!r}; {_nearest(option, known)}")


def _nearest(word: str, known: list[str]) -> str:
    if not known:
        return "it has none"
    near = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known))}"
