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
    prefixes_of,
    single_ingredient_soup,
    soup_of,
    taste_iterate,
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

    Takes a few ingredients at a time. The first ones start from their mean, later ones from the
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
    """Passes over the ingredients, each in another order."""
    epochs: PositiveInt = 5
    """Passes over the selection split per group of ingredients."""
    batch_size: PositiveInt = 256
    lr: PositiveFloat = 0.01
    """Peak learning rate: a linear warm-up over a fifth of the steps, then half a cosine to 0."""
    clip_grad: PositiveFloat | None = None
    """Greatest length of d loss / d X. None: not clipped."""

    def most_tastes(self, count: int) -> int:
        """For estimates; the gradients of an epoch cost as much as two tastes."""
        batches = -(-count // self.model_batch)
        return 1 + 3 * self.epochs * self.model_epochs * batches

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        if len(ordered) == 1:
            return single_ingredient_soup(ordered[0])
        names = tuple(ingredient.name for ingredient in ordered)
        prefixes = prefixes_of(context, self.by == "component")
        grams = yield GramMatrices(names=names, base=context.base)
        assert isinstance(grams, GramResult)
        space = IngredientSpace(names, prefixes, component_grams(grams, prefixes, len(names)))
        centre, iterates = np.zeros((len(prefixes), len(names))), list[Iterate]()
        for number, group in enumerate(self._groups(len(names), context.seed)):
            if not iterates:
                centre[:, group] = 1 / len(group)
                mean = Mix.mean([names[i] for i in group])
                label = f"the mean of the first {len(group)}"
                iterates.append((yield from taste_iterate(label, mean, centre, [])))
            centre = yield from self._descend(space, number, group, centre, iterates, context)
        return soup_of(iterates, ordered, names)

    def _groups(self, num: int, seed: int) -> Iterator[list[int]]:
        """Indices of the ingredients that are learned together."""
        rng = np.random.default_rng(seed)
        for _ in range(self.model_epochs):
            order = rng.permutation(num).tolist()
            for start in range(0, num, self.model_batch):
                yield sorted(order[start : start + self.model_batch])

    def _descend(
        self,
        space: "IngredientSpace",
        number: int,
        group: list[int],
        centre: np.ndarray,
        iterates: list[Iterate],
        context: RecipeContext,
    ) -> Generator[Question, Answer, np.ndarray]:
        """Add an iterate per epoch; return the weights at the end."""
        plane, adam = space.plane(centre, group), Adam()
        coefficients = np.zeros((len(space.prefixes), len(group)))
        per_epoch = num_batches(context, self.batch_size)
        for epoch in range(self.epochs):
            losses: list[float] = []
            for batch in range(per_epoch):
                result = yield MixGradient(
                    mix=space.mix(plane.at(coefficients), plane.live),
                    components=space.prefixes,
                    epoch=number * self.epochs + epoch,
                    batch=batch,
                    batch_size=self.batch_size,
                )
                assert isinstance(result, MixGradientResult)
                if not is_finite(result):
                    return centre
                gradient = clipped(plane.gradient(np.array(result.weights)), self.clip_grad)
                lr = self.lr * lr_factor(epoch * per_epoch + batch, self.epochs * per_epoch)
                coefficients = adam.step(coefficients, gradient, lr)
                losses.append(result.loss)
            weights = plane.at(coefficients)
            label = f"ingredients {number + 1}, epoch {epoch + 1}"
            mix = space.mix(weights, plane.live)
            iterates.append((yield from taste_iterate(label, mix, weights, losses)))
        return plane.at(coefficients)


@dataclass(frozen=True)
class SearchPlane:
    """The plane of a descent: a centre and directions, as weights of the ingredients."""

    centre: np.ndarray
    """(components, ingredients)"""
    directions: np.ndarray
    """(components, group, ingredients); rows sum to 0."""
    live: tuple[int, ...]
    """Indices of ingredients with a weight in the centre, or a direction."""

    def at(self, coefficients: np.ndarray) -> np.ndarray:
        """(components, ingredients) weights from (components, group) coefficients."""
        weights: np.ndarray = self.centre + np.einsum("lf,lfk->lk", coefficients, self.directions)
        return weights

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """d loss / d coefficients from (components, live) d loss / d weights."""
        directions = self.directions[:, :, list(self.live)]
        result: np.ndarray = np.einsum("lfk,lk->lf", directions, weights)
        return result


@dataclass(frozen=True)
class IngredientSpace:
    """The ingredients' names, and the inner products of their displacements by component."""

    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    grams: np.ndarray
    """(components, ingredients, ingredients), of displacements from the base."""

    def plane(self, centre: np.ndarray, group: list[int]) -> SearchPlane:
        """Directions have length 1, or 0 if an ingredient is the centre, as if it were frozen.

        Since the weights of the centre sum to 1, |theta_i - c|^2 = G_ii - 2 (G c)_i + c' G c.
        """
        towards = np.eye(len(self.names))[group] - centre[:, None, :]
        squared = np.einsum("lfi,lij,lfj->lf", towards, self.grams, towards)
        # Rounding leaves this much if the true length is 0.
        scale = 1e-12 * np.einsum("lii->l", self.grams)[:, None]
        lengths = np.sqrt(np.where(squared > scale, squared, math.inf))
        live = np.flatnonzero(centre.any(axis=0)).tolist()
        return SearchPlane(centre, towards / lengths[:, :, None], tuple(sorted({*live, *group})))

    def mix(self, weights: np.ndarray, live: tuple[int, ...]) -> Mix:
        """The mix of the live ingredients, also those of weight 0, whose gradient is needed."""
        names = tuple(self.names[i] for i in live)
        return mix_of(names, self.prefixes, weights[:, list(live)])


def component_grams(grams: GramResult, prefixes: tuple[str, ...], num: int) -> np.ndarray:
    """(components, num, num): the sum over the tensors of each prefix."""
    sums = np.zeros((len(prefixes), num * (num + 1) // 2))
    for key, values in grams.tensors.items():
        sums[prefixes.index(component_of(key, prefixes) or EVERYTHING)] += values
    return symmetric(sums, num)


def clipped(gradient: np.ndarray, longest: float | None) -> np.ndarray:
    """The gradient scaled down to this length, if it is longer."""
    length = float(np.linalg.norm(gradient))
    return gradient * (longest / length) if longest is not None and length > longest else gradient


def lr_factor(step: int, num_steps: int) -> float:
    """Factor of the learning rate: up to 1 over the first fifth, then half a cosine towards 0."""
    warm = num_steps // 5
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / (num_steps - warm))) / 2
