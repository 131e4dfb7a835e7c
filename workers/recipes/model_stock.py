"""The recipe `model_stock`: the mean, pulled towards the base the more its members disagree."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from workers.recipes.best import by_score
from workers.recipes.gram_matrix import symmetric
from workers.recipes.uniform import member_decision
from workers.types import (
    Answer,
    Component,
    Decision,
    GramMatrices,
    GramResult,
    Ingredient,
    Mix,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResults,
)

EPSILON = 1e-12
"""Least product of two lengths, relative to the square of the longest: a displacement below has no
direction."""


@dataclass(frozen=True)
class ModelStock:
    """Model Stock (Jang et al., "Model Stock: All we need is just a few fine-tuned models", ECCV
    2024), for any number of ingredients.

    Per tensor theta = t * mean + (1 - t) * base, with t = N c / (1 + (N - 1) c) and c the mean
    cosine between the displacements of two ingredients: the point between base and mean that is
    nearest to the centre that the ingredients scatter around. It needs no data; its selection
    score chooses nothing. t is clamped to [0, 1]: where displacements point apart, the base is
    taken. BatchNorm statistics are the members' mean, and follow the cohort's policy. The head
    counts like any other tensor.
    """

    needs_base: ClassVar[bool] = True

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return 1

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        names = tuple(ingredient.name for ingredient in ordered)
        grams = yield GramMatrices(names=names, base=context.base)
        assert isinstance(grams, GramResult)
        pulls = {key: pull(gram, len(names)) for key, gram in grams.tensors.items()}
        mix = _mix(names, context.base, pulls)
        answer = yield Taste(mixes=(mix,))
        assert isinstance(answer, TasteResults)
        members = [member_decision(ingredient, len(names)) for ingredient in ordered]
        decisions = (*members, _base_decision(context.base, pulls))
        return Soup(mix=mix, score=answer.scores[0], decisions=decisions)


def pull(gram: tuple[float, ...], num: int) -> float:
    """t of one tensor, not clamped, from the rows of its Gram matrix for i <= j.

    1 for one ingredient, and where all displacements are the same, zero included.
    """
    if all(value == gram[0] for value in gram):
        return 1.0
    inner = symmetric(gram, num).tolist()
    squares = [inner[i][i] for i in range(num)]
    least = EPSILON * max(squares)
    cosines = [
        inner[i][j] / max(math.sqrt(squares[i] * squares[j]), least)
        for i in range(num)
        for j in range(i + 1, num)
    ]
    mean = math.fsum(cosines) / len(cosines)
    scale = 1 + (num - 1) * mean
    return num * mean / scale if scale > 0 else -math.inf


def _mix(names: tuple[str, ...], base: str, pulls: dict[str, float]) -> Mix:
    """The mean where t is 1 and in tensors without t. The base comes last, so that BatchNorm
    statistics and integers are a member's."""
    num = float(len(names))
    mean = Mix.mean(names)
    clamped = {key: min(max(t, 0.0), 1.0) for key, t in pulls.items()}
    components = tuple(
        Component(prefix=key, weights=(*(t for _ in names), (1 - t) * num))
        for key, t in clamped.items()
        if t != 1
    )
    if not components:
        return mean
    return Mix(weights=(*mean.weights, (base, 0.0)), divisor=num, components=components)


def _base_decision(base: str, pulls: dict[str, float]) -> Decision:
    low, high = sum(t < 0 for t in pulls.values()), sum(t > 1 for t in pulls.values())
    clamped = [min(max(t, 0.0), 1.0) for t in pulls.values()]
    shares = ""
    if clamped:
        shares = f", from {min(clamped):.3f} to {max(clamped):.3f}, median {median(clamped):.3f}"
    reason = (
        f"the base has the share 1 - t in each of {len(clamped)} tensors; t is that of Model "
        f"Stock{shares}; {low} were clamped to 0 and {high} to 1"
    )
    return Decision(candidate=base, accepted=any(t < 1 for t in clamped), reason=reason)
