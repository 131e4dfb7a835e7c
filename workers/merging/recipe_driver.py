"""Driving a recipe: one order, one question or the soup. Torch-free.

    order, answers 1..n --live recipe that has 1..n-1: send answer n------> question n+1 | soup
                        --none, as in a new process: send answers 1..n----> the same

The merge actor holds recipes, never a slot: a question goes up as an event, its answer comes back
in the next order. An order carries all answers, so any worker can continue a merge.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from workers.errors import UserError
from workers.recipes import Recipe, load_recipe
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
    """One event: the recipe's next question after these answers, or its soup."""
    arguments = load_recipe(order.recipe, order.options), order.ingredients, order.context
    live: LiveRecipe | None = worker.live_recipes.pop(order.merge, None)
    if live is None or not live.is_continued_by(arguments, order.answers):
        live = LiveRecipe(arguments)
    outcome = live.advance(order.answers)
    if isinstance(outcome, Soup):
        yield Mixed(merge=order.merge, soup=outcome)
        return
    worker.live_recipes[order.merge] = live
    yield Asked(merge=order.merge, question=outcome)


def advance(
    recipe: Recipe,
    ingredients: tuple[Ingredient, ...],
    answers: tuple[Answer, ...],
    context: RecipeContext,
) -> Question | Soup:
    """The recipe's next question after these answers, or its soup. Pure: replay as often as needed.

    Raises UserError when the recipe mixes a name that is neither an ingredient nor the base.
    """
    return LiveRecipe((recipe, ingredients, context)).advance(answers)


Arguments = tuple[Recipe, tuple[Ingredient, ...], RecipeContext]


class LiveRecipe:
    """A recipe between two questions: its generator, and the answers sent to it."""

    def __init__(self, arguments: Arguments) -> None:
        recipe, ingredients, context = self._arguments = arguments
        self._names = {ingredient.name for ingredient in ingredients} | {context.base}
        self._answers: tuple[Answer, ...] = ()
        self._generator = recipe(ingredients, context)
        self._outcome = self._resume(None)

    def is_continued_by(self, arguments: Arguments, answers: tuple[Answer, ...]) -> bool:
        """Whether it is this recipe, and `answers` begin with those sent to it."""
        return self._arguments == arguments and answers[: len(self._answers)] == self._answers

    def advance(self, answers: tuple[Answer, ...]) -> Question | Soup:
        """Send the answers that are new; see the function `advance`."""
        for answer in answers[len(self._answers) :]:
            if isinstance(self._outcome, Soup):
                break
            question = self._outcome
            assert _fits(question, answer), f"{answer.kind} does not answer {question.kind}"
            self._outcome = self._resume(answer)
        self._answers = answers
        outcome = self._outcome
        names = outcome.mix.names if isinstance(outcome, Soup) else outcome.mentioned
        _check_names(names, self._names)
        return outcome

    def _resume(self, answer: Answer | None) -> Question | Soup:
        try:
            return next(self._generator) if answer is None else self._generator.send(answer)
        except StopIteration as end:
            soup: Soup = end.value
            return soup


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


def _check_names(names: Iterable[str], allowed: set[str]) -> None:
    unknown = sorted(set(names) - allowed)
    if unknown:
        raise UserError(
            f"the recipe mixes {unknown[0]!r}, which is none of the {len(allowed)} checkpoints it "
            "was given; a recipe may only name its ingredients and context.base"
        )
