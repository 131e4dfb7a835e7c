"""The recipe `mehl`: learned steps along the directions from a running centre."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from workers.recipes.best import by_score
from workers.recipes.gradient_descent import (
    EVERYTHING,
    Adam,
    Iterate,
    is_finite,
    mix_of,
    num_batches,
    rows_of,
    single_ingredient_soup,
    soup_of,
    tasted,
)
from workers.recipes.gram_matrix import symmetric
from workers.types import (
    Answer,
    GramMatrices,
    GramResult,
    Ingredient,
    Mix,
    MixGradient,
    MixGradientResult,
    Question,
    RecipeContext,
    Soup,
    component_of,
)


@dataclass(frozen=True)
class Mehl:
    """MEHL-Soup, memory-efficient hyperplane learned soup (Li et al., 2024), and MEHL-Soup+.

    Takes the ingredients a few at a time. The first few start from their mean, later ones from the
    soup so far: the centre c. Along the direction P_i from c to each of them, scaled to length 1
    per component, a coefficient X_i is learned that starts at 0: soup = c + sum_i X_i P_i. The
    weights sum to 1, but may be negative or exceed 1: the soup may leave the hull of its
    ingredients. Since d loss / d X_i = <P_i, g>, one backward pass through one blended model is
    enough. Returns the best iterate, as `learned` does; the start is the first mean. Assumes a
    common base, and a selection split large enough to learn from.
    """

    by: Literal["component", "global"] = "component"
    """One coefficient per ingredient and component (MEHL-Soup+), or one per ingredient."""
    model_batch: Annotated[int, Field(ge=2)] = 5
    """Ingredients at a time."""
    model_epochs: PositiveInt = 1
    """How often every ingredient has its turn, each time in another order."""
    epochs: PositiveInt = 5
    """Over the selection split, for each few ingredients."""
    batch_size: PositiveInt = 256
    lr: PositiveFloat = 0.01
    """At its peak: a linear warm-up over a fifth of the steps, then half a cosine to 0."""
    clip_grad: PositiveFloat | None = None
    """Longest allowed d loss / d X."""

    def most_tastes(self, count: int) -> int:
        """Of `count` ingredients, for forecasts; an epoch's gradients cost what two tastes do."""
        batches = -(-count // self.model_batch)
        return 1 + 3 * self.epochs * self.model_epochs * batches

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        if len(ordered) == 1:
            return single_ingredient_soup(ordered[0])
        names = tuple(each.name for each in ordered)
        prefixes = rows_of(context, self.by == "component")
        grams = yield GramMatrices(names=names, base=context.base)
        assert isinstance(grams, GramResult)
        pool = IngredientSpace(names, prefixes, component_grams(grams, prefixes, len(names)))
        centre, iterates = np.zeros((len(prefixes), len(names))), list[Iterate]()
        for turn, few in enumerate(self._few_at_a_time(len(names), context.seed)):
            if not iterates:
                centre[:, few] = 1 / len(few)
                mean = Mix.mean([names[i] for i in few])
                label = f"the mean of the first {len(few)}"
                iterates.append((yield from tasted(label, mean, centre, [])))
            centre = yield from self._descend(pool, turn, few, centre, iterates, context)
        return soup_of(iterates, ordered, names)

    def _few_at_a_time(self, num: int, seed: int) -> Iterator[list[int]]:
        rng = np.random.default_rng(seed)
        for _ in range(self.model_epochs):
            order = rng.permutation(num).tolist()
            for start in range(0, num, self.model_batch):
                yield sorted(order[start : start + self.model_batch])

    def _descend(
        self,
        pool: "IngredientSpace",
        turn: int,
        few: list[int],
        centre: np.ndarray,
        iterates: list[Iterate],
        context: RecipeContext,
    ) -> Generator[Question, Answer, np.ndarray]:
        """Adds an iterate per epoch; returns the weights where it ends."""
        plane, adam = pool.plane(centre, few), Adam()
        coefficients = np.zeros((len(pool.prefixes), len(few)))
        per_epoch = num_batches(context, self.batch_size)
        for epoch in range(self.epochs):
            losses: list[float] = []
            for batch in range(per_epoch):
                slope = yield MixGradient(
                    mix=pool.mix(plane.at(coefficients), plane.live),
                    components=pool.prefixes,
                    epoch=turn * self.epochs + epoch,
                    batch=batch,
                    batch_size=self.batch_size,
                )
                assert isinstance(slope, MixGradientResult)
                if not is_finite(slope):
                    return centre
                down = clipped(plane.slope(np.array(slope.weights)), self.clip_grad)
                lr = self.lr * schedule(epoch * per_epoch + batch, self.epochs * per_epoch)
                coefficients = adam.step(coefficients, down, lr)
                losses.append(slope.loss)
            weights = plane.at(coefficients)
            label = f"ingredients {turn + 1}, epoch {epoch + 1}"
            mix = pool.mix(weights, plane.live)
            iterates.append((yield from tasted(label, mix, weights, losses)))
        return plane.at(coefficients)


@dataclass(frozen=True)
class SearchPlane:
    """Where a descent may go: from the centre along directions, all told in weights."""

    centre: np.ndarray
    """(components, ingredients)"""
    directions: np.ndarray
    """(components, few, ingredients); rows sum to 0."""
    live: tuple[int, ...]
    """Ingredients that weigh something in the centre, or give a direction."""

    def at(self, coefficients: np.ndarray) -> np.ndarray:
        """(components, ingredients) weights from (components, few) coefficients."""
        weights: np.ndarray = self.centre + np.einsum("lf,lfk->lk", coefficients, self.directions)
        return weights

    def slope(self, weights: np.ndarray) -> np.ndarray:
        """d loss / d coefficients from (components, live) d loss / d weights."""
        down: np.ndarray = np.einsum("lfk,lk->lf", self.directions[:, :, list(self.live)], weights)
        return down


@dataclass(frozen=True)
class IngredientSpace:
    """The ingredients: names, prefixes of the components, and how the ingredients lie in each."""

    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    grams: np.ndarray
    """(components, ingredients, ingredients) inner products of displacements from the base."""

    def plane(self, centre: np.ndarray, few: list[int]) -> SearchPlane:
        """Directions have length 1, or 0 where an ingredient is the centre, as if it were frozen.

        Since the weights of the centre sum to 1, |theta_i - c|^2 = G_ii - 2 (G c)_i + c' G c.
        """
        towards = np.eye(len(self.names))[few] - centre[:, None, :]
        squared = np.einsum("lfi,lij,lfj->lf", towards, self.grams, towards)
        # Rounding leaves this much where the true length is 0.
        scale = 1e-12 * np.einsum("lii->l", self.grams)[:, None]
        lengths = np.sqrt(np.where(squared > scale, squared, math.inf))
        live = np.flatnonzero(centre.any(axis=0)).tolist()
        return SearchPlane(centre, towards / lengths[:, :, None], tuple(sorted({*live, *few})))

    def mix(self, weights: np.ndarray, live: tuple[int, ...]) -> Mix:
        """Names also those whose weight is 0 so far: their slope is asked for."""
        names = tuple(self.names[i] for i in live)
        return mix_of(names, self.prefixes, weights[:, list(live)])


def component_grams(grams: GramResult, prefixes: tuple[str, ...], num: int) -> np.ndarray:
    """(components, num, num): the sum over the tensors that each prefix holds."""
    sums = np.zeros((len(prefixes), num * (num + 1) // 2))
    for key, values in grams.tensors.items():
        sums[prefixes.index(component_of(key, prefixes) or EVERYTHING)] += values
    return symmetric(sums, num)


def clipped(slope: np.ndarray, longest: float | None) -> np.ndarray:
    """Scaled down to this length, if it is longer."""
    length = float(np.linalg.norm(slope))
    return slope * (longest / length) if longest is not None and length > longest else slope


def schedule(step: int, num_steps: int) -> float:
    """Factor of the learning rate: up to 1 over the first fifth, then half a cosine towards 0."""
    warm = num_steps // 5
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / (num_steps - warm))) / 2
