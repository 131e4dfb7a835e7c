"""Driving a recipe: replay its answers up to the next question, or to its soup. Torch-free.

The merge actor holds a recipe, never a slot: a question goes up as an event, its answer comes back
in the next order. So a killed merge continues where the ledger is.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from workers import recipes
from workers.errors import UserError
from workers.types import (
    Answer,
    AnyEvent,
    Asked,
    FirstAtLeast,
    FirstResult,
    GramMatrices,
    GramResult,
    Ingredient,
    MergeOrder,
    Mixed,
    MixGradient,
    MixGradientResult,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResults,
)

if TYPE_CHECKING:
    from workers.context import WorkerContext


def merge(order: MergeOrder, attempt: int, worker: "WorkerContext") -> Iterator[AnyEvent]:
    """One event: what the recipe asks after these answers, or the soup it made."""
    recipe = recipes.load(order.recipe, order.options)
    outcome = advance(recipe, order.ingredients, order.answers, order.kitchen)
    if isinstance(outcome, Soup):
        yield Mixed(merge=order.merge, soup=outcome)
    else:
        yield Asked(merge=order.merge, question=outcome)


def advance(
    recipe: recipes.AnyRecipe,
    ingredients: tuple[Ingredient, ...],
    answers: tuple[Answer, ...],
    kitchen: RecipeContext | None = None,
) -> Question | Soup:
    """The recipe's next question after these answers, or its soup. Pure: replay as often as needed.

    Raises UserError when the recipe mixes a name that is neither an ingredient nor the base.
    """
    known = {each.name for each in ingredients} | ({kitchen.base} if kitchen else set())
    generator = recipes.start(recipe, ingredients, kitchen)
    try:
        question = next(generator)
        for answer in answers:
            assert _fits(question, answer), f"{answer.kind} does not answer {question.kind}"
            question = generator.send(answer)
    except StopIteration as end:
        soup: Soup = end.value
        _check_names(soup.mix.names, known)
        return soup
    _check_names(question.mentioned, known)
    return question


def _fits(question: Question, answer: Answer) -> bool:
    if isinstance(question, Taste):
        return isinstance(answer, TasteResults) and len(answer.scores) == len(question.mixes)
    if isinstance(question, GramMatrices):
        return isinstance(answer, GramResult)
    if isinstance(question, MixGradient):
        shape = [len(question.mix.weights)] * len(question.components)
        return (
            isinstance(answer, MixGradientResult) and [len(row) for row in answer.weights] == shape
        )
    return isinstance(answer, FirstResult) and len(answer.tried) == _num_tried(question, answer)


def _num_tried(question: FirstAtLeast, answer: FirstResult) -> int:
    return len(question.mixes) if answer.index is None else answer.index + 1


def _check_names(names: Iterable[str], known: set[str]) -> None:
    strangers = sorted(set(names) - known)
    if strangers:
        raise UserError(
            f"the recipe mixes {strangers[0]!r}, which is none of the {len(known)} checkpoints it "
            "was given; a recipe may only name its ingredients and kitchen.base"
        )
