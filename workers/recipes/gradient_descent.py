"""Gradient descent on the loss of a mix: what recipes that learn their weights share.

weights  (components, checkpoints)   row 0 is for tensors that no component's prefix fits

     MixGradient --> MixGradientResult --> Adam --> weights' --> Taste
     once per batch, one blended model              at the end of an epoch
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from workers.types import (
    Answer,
    Component,
    Decision,
    Ingredient,
    Mix,
    MixGradientResult,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResults,
)

EVERYTHING = ""
"""The prefix of all tensors that no longer prefix fits."""


class Adam:
    """Adam (Kingma and Ba, ICLR 2015) as in torch. With a weight decay of 0 it equals AdamW."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        self._first: np.ndarray | float = 0.0
        self._second: np.ndarray | float = 0.0
        self._num_steps = 0

    def step(self, values: np.ndarray, gradient: np.ndarray, lr: float) -> np.ndarray:
        """The values after one step, of the same shape."""
        self._num_steps += 1
        self._first = self._beta1 * self._first + (1 - self._beta1) * gradient
        self._second = self._beta2 * self._second + (1 - self._beta2) * gradient**2
        first = self._first / (1 - self._beta1**self._num_steps)
        second = self._second / (1 - self._beta2**self._num_steps)
        return values - lr * first / (np.sqrt(second) + self._eps)


def prefixes_of(context: RecipeContext, per_component: bool) -> tuple[str, ...]:
    """The prefixes that have weights of their own."""
    return (EVERYTHING, *context.components) if per_component else (EVERYTHING,)


def mix_of(names: tuple[str, ...], prefixes: tuple[str, ...], weights: np.ndarray) -> Mix:
    """The mix with these (prefix, checkpoint) weights, whose rows sum to 1."""
    first, *others = ([float(weight) for weight in row] for row in weights)
    components = tuple(
        Component(prefix=prefix, weights=tuple(row))
        for prefix, row in zip(prefixes[1:], others, strict=True)
    )
    if all(row == first for row in others):
        components = ()
    return Mix(weights=tuple(zip(names, first, strict=True)), divisor=1.0, components=components)


def num_batches(context: RecipeContext, batch_size: int) -> int:
    """Batches per epoch; the last one may be smaller."""
    return math.ceil(context.num_selection / batch_size)


@dataclass(frozen=True)
class Iterate:
    """The result of a descent at the end of an epoch."""

    label: str
    mix: Mix
    weights: np.ndarray
    score: float
    nll: float
    """Nats on the selection split, without a temperature. Infinite: unknown, or not finite."""
    loss: float | None = None
    """Mean over the epoch's batches, each before its step. None: no epoch was trained."""


def taste_iterate(
    label: str, mix: Mix, weights: np.ndarray, losses: list[float]
) -> Generator[Question, Answer, Iterate]:
    """Ask for the mix's score and NLL."""
    answer = yield Taste(mixes=(mix,))
    assert isinstance(answer, TasteResults)
    nll = answer.nll[0] if answer.nll else None
    loss = sum(losses) / len(losses) if losses else None
    nll = math.inf if nll is None or not math.isfinite(nll) else nll
    return Iterate(label, mix, weights, answer.scores[0], nll, loss)


def best_of(iterates: list[Iterate]) -> int:
    """Index of the highest score among the iterates whose NLL is not above that of the start,
    `iterates[0]`; of equal scores the lowest NLL, then the earliest. So neither score nor NLL is
    ever worse than at the start.
    """
    allowed = [i for i, iterate in enumerate(iterates) if iterate.nll <= iterates[0].nll]
    return min(allowed, key=lambda i: (-iterates[i].score, iterates[i].nll, i))


def is_finite(result: MixGradientResult) -> bool:
    """Whether the loss and its gradient allow a step."""
    return math.isfinite(result.loss) and bool(np.isfinite(result.weights).all())


def single_ingredient_soup(only: Ingredient) -> Soup:
    """The soup of one ingredient: the ingredient itself."""
    reason = "the only ingredient: there is nothing to learn"
    decision = Decision(candidate=only.name, accepted=True, after=only.score, reason=reason)
    return Soup(mix=Mix.mean([only.name]), score=only.score, decisions=(decision,))


def soup_of(iterates: list[Iterate], ingredients: list[Ingredient], names: tuple[str, ...]) -> Soup:
    """The best iterate, with what each ingredient weighs in it, then the score of each iterate."""
    best = iterates[best_of(iterates)]
    shares = [
        _share(ingredient, best.weights[:, names.index(ingredient.name)])
        for ingredient in ingredients
    ]
    path = [_iterate_decision(iterate, iterate is best, iterates[0]) for iterate in iterates]
    return Soup(mix=best.mix, score=best.score, decisions=(*shares, *path))


def _share(ingredient: Ingredient, column: np.ndarray) -> Decision:
    own = column[1:] if len(column) > 1 else column
    reason = f"weighs {own.mean():.4f}"
    if len(own) > 1:
        reason += f" on average over {len(own)} components, {own.min():.4f} to {own.max():.4f}"
    reason += f"; alone it scores {ingredient.score:.4f}"
    return Decision(candidate=ingredient.name, accepted=bool(column.any()), reason=reason)


def _iterate_decision(iterate: Iterate, is_best: bool, start: Iterate) -> Decision:
    reason = f"scores {iterate.score:.4f}"
    if math.isfinite(iterate.nll):
        reason += f" with an NLL of {iterate.nll:.4f}"
    if iterate.loss is not None:
        reason += f", mean loss of the epoch {iterate.loss:.4f}"
    if is_best:
        reason += "; the best iterate"
    elif iterate.nll > start.nll:
        reason += f"; its NLL exceeds that of the start, {start.nll:.4f}"
    else:
        reason += "; another iterate is better"
    return Decision(
        candidate=iterate.label,
        accepted=is_best,
        before=start.score,
        after=iterate.score,
        reason=reason,
    )
