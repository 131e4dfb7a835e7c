"""Recipes: which ingredients, in which proportion. A file each; this is the table of names.

A recipe is a frozen dataclass whose fields are its YAML options. Called with ingredients and a
`RecipeContext` (the base, the model's components, the seed) it is a generator: it yields questions,
is sent their answers, and returns a soup. It never sees a tensor, a file, or any split but the
selection split:

    recipe(ingredients, context) --Taste | FirstAtLeast | GramMatrices | MixGradient--> orders
                                 <--TasteResults | FirstResult | GramResult | MixGradientResult--

Everything that depends on the recipe is asked of the recipe:

    field `tie`                  its default in an experiment is `soup.tie`
    `needs_base: ClassVar[bool]` it means something only if the base is given; False if missing
    `most_tastes(count)`         passes over the selection split, for estimates
    `path(ingredients, context)` the line on which it searches its soup, scored for the report
"""

import importlib
import inspect
import re
import sys
from collections.abc import Generator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from workers.errors import UserError, did_you_mean, first_line
from workers.recipes.acceptance import Acceptance
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

PATH_FORM = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
"""Regular expression of `package.module:Class`."""

RecipeRun = Generator[Question, Answer, Soup]


class Recipe(Protocol):
    """Asks until it can return its soup. The same answers must lead to the same questions."""

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext, /
    ) -> RecipeRun: ...


def most_tastes(recipe: Recipe, count: int) -> int:
    """Most passes over the selection split that the recipe asks for with `count` ingredients.

    One per ingredient if the recipe has no `most_tastes`.
    """
    method: Any = getattr(recipe, "most_tastes", None)
    return count if method is None else int(method(count))


Path = tuple[tuple[float, Mix], ...]
"""(position on the line, mix), in order."""


def path_of(recipe: Recipe, ingredients: tuple[Ingredient, ...], context: RecipeContext) -> Path:
    """The line on which the recipe searches its soup; empty if the recipe has no `path`."""
    method: Any = getattr(recipe, "path", None)
    return () if method is None else tuple(method(ingredients, context))


def needs_base(name: str) -> bool:
    """Whether the recipe needs the weights that all ingredients were fine-tuned from."""
    return bool(getattr(recipe_class(name), "needs_base", False))


def tie_option(name: str, tie: str) -> dict[str, Any]:
    """`soup.tie` as an option of the recipe; empty if the recipe has no option `tie`.

    Recipes of the table that follow `Acceptance` record its default `accept` as well, because
    ledgers identify their merges by a digest of the options. A class outside the table must have
    been imported; this does not import it.
    """
    recipe = recipe_class(name) if ":" not in name else imported_class(name)
    if recipe is None or "tie" not in {field.name for field in fields(recipe)}:
        return {}
    records_default = name in RECIPES and issubclass(recipe, Acceptance)
    return {"tie": tie} if records_default or tie == "strict" else {}


def load_recipe(name: str, options: dict[str, Any] | None = None) -> Recipe:
    """The recipe of this name, or of this path `package.module:Class`, with its options.

    Raises UserError for a name or an option that does not exist, for a value that does not fit, and
    for a class that is no recipe.
    """
    recipe = recipe_class(name)
    for option in options or {}:
        _check_option(name, recipe, option)
    try:
        loaded: Recipe = TypeAdapter(recipe).validate_python(options or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        place = f"recipe {name}, option {field}" if field else f"recipe {name}"
        raise UserError(f"{place}: {first['msg']}, got {first['input']!r}") from None
    if ":" in name:
        _check_call(name, loaded)
    return loaded


def recipe_class(name: str) -> type:
    """The dataclass of this name or path. Raises UserError if there is none."""
    recipe = _imported(name) if ":" in name else RECIPES.get(name)
    if recipe is None:
        raise UserError(f"unknown recipe {name!r}; {_nearest(name, list(RECIPES))}")
    return recipe


def require_name(name: str) -> None:
    """Check a name, or the form of a path, without importing anything. Raises UserError."""
    if ":" not in name:
        recipe_class(name)
    elif not re.fullmatch(PATH_FORM, name):
        raise UserError(f"recipe {name!r} is not a path; write package.module:Class")


def module_of(name: str) -> str | None:
    """The module that a recipe's path names. None: it is a recipe of the table."""
    return name.partition(":")[0] if ":" in name else None


def imported_class(path: str) -> type | None:
    """The class of this path. None: its module was not imported, or it is no dataclass."""
    module_name, _, class_name = path.partition(":")
    recipe = getattr(sys.modules.get(module_name), class_name, None)
    return recipe if isinstance(recipe, type) and is_dataclass(recipe) else None


def _imported(path: str) -> type:
    require_name(path)
    module_name, _, class_name = path.partition(":")
    try:
        recipe = getattr(importlib.import_module(module_name), class_name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the user's module raises
        raise UserError(
            f"recipe {path!r} cannot be imported ({first_line(error)}); write "
            "package.module:Class of an importable module"
        ) from error
    if not is_dataclass(recipe):
        raise UserError(f"recipe {path!r} is no dataclass; decorate it with dataclass(frozen=True)")
    assert isinstance(recipe, type)
    return recipe


def _check_option(name: str, recipe: type, option: str) -> None:
    options = [field.name for field in fields(recipe)]
    if option not in options:
        raise UserError(f"recipe {name} has no option {option!r}; {_nearest(option, options)}")


def _check_call(name: str, recipe: Any) -> None:
    """Refuse early what would end as a TypeError after training."""
    signature = inspect.signature(recipe) if callable(recipe) else None
    try:
        if signature is not None:
            signature.bind((), None)
            return
    except TypeError:
        pass
    arguments = "cannot be called" if signature is None else f"takes {signature}"
    raise UserError(
        f"recipe {name} {arguments}; write def __call__(self, ingredients, context), where "
        "context is a workers.types.RecipeContext"
    )


def _nearest(name: str, names: list[str]) -> str:
    if not names:
        return "it has none"
    return did_you_mean(name, names) or f"known are {', '.join(sorted(names))}"
