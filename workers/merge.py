"""Driving a recipe: replay its answers up to the next question, or to its soup. Torch-free.

The merge actor holds a recipe, never a slot: a question goes up as an event, its answer comes back
in the next order. So a killed merge continues where the ledger is.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from workers import recipes
from workers.types import (
    Answer,
    AnyEvent,
    Asked,
    First,
    Found,
    Ingredient,
    MergeOrder,
    Mixed,
    Question,
    Soup,
    Taste,
    Tastings,
    UserError,
)

if TYPE_CHECKING:
    from workers.worker import Worker


def merge(order: MergeOrder, attempt: int, worker: "Worker") -> Iterator[AnyEvent]:
    """One event: what the recipe asks after these answers, or the soup it made."""
    recipe = recipes.load(order.recipe, order.options)
    outcome = advance(recipe, order.ingredients, order.answers)
    if isinstance(outcome, Soup):
        yield Mixed(merge=order.merge, soup=outcome)
    else:
        yield Asked(merge=order.merge, question=outcome)


def advance(
    recipe: recipes.Recipe, ingredients: tuple[Ingredient, ...], answers: tuple[Answer, ...]
) -> Question | Soup:
    """The recipe's next question after these answers, or its soup. Pure: replay as often as needed.

    Raises UserError when the recipe mixes a name that is no ingredient.
    """
    known = {each.name for each in ingredients}
    generator = recipe(ingredients)
    try:
        question = next(generator)
        for answer in answers:
            assert _fits(question, answer), f"{answer.kind} does not answer {question.kind}"
            question = generator.send(answer)
    except StopIteration as end:
        soup: Soup = end.value
        _check_names(soup.mix.names, known)
        return soup
    for mix in question.mixes:
        _check_names(mix.names, known)
    return question


def _fits(question: Question, answer: Answer) -> bool:
    if isinstance(question, Taste):
        return isinstance(answer, Tastings) and len(answer.scores) == len(question.mixes)
    if not isinstance(answer, Found):
        return False
    num_tried = len(question.mixes) if answer.index is None else answer.index + 1
    return isinstance(question, First) and len(answer.tried) == num_tried


def _check_names(names: tuple[str, ...], known: set[str]) -> None:
    strangers = sorted(set(names) - known)
    if strangers:
        raise UserError(
            f"the recipe mixes {strangers[0]!r}, which is none of its {len(known)} ingredients; "
            "a recipe may only name what it was given"
        )
