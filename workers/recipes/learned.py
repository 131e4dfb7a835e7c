"""The recipe `learned`: weights by gradient descent on the selection split."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from workers.recipes.best import by_score
from workers.recipes.gradient_descent import (
    Adam,
    Iterate,
    best_of,
    is_finite,
    mix_of,
    num_batches,
    rows_of,
    single_ingredient_soup,
    soup_of,
    tasted,
)
from workers.types import (
    Answer,
    Ingredient,
    Mix,
    MixGradient,
    MixGradientResult,
    Question,
    RecipeContext,
    Soup,
)


@dataclass(frozen=True)
class Learned:
    """Learned soup (Wortsman et al., "Model soups", ICML 2022, appendix I).

    Minimises the mean cross-entropy of `temperature * logits` over the selection split. The
    weights are a softmax, so they are positive and sum to 1: one for the whole model, or one per
    component. The temperature is learned beside them and does not become part of the soup. Starts
    from equal weights; after each epoch the iterate is tasted, and the best one is returned: the
    highest score among those whose selection NLL is not above that of equal weights, ties by the
    lower NLL. The paper's authors hold every ingredient in memory; here each step needs one
    blended model. Assumes a common base, and a selection split large enough to learn from.
    """

    by: Literal["ingredient", "component"] = "ingredient"
    """One softmax for all tensors, or one per component."""
    epochs: PositiveInt | None = None
    """Over the selection split; by default the published 3 by ingredient, 5 by component."""
    batch_size: PositiveInt = 256
    lr: PositiveFloat | None = None
    """Constant; by default the published 0.1 by ingredient, 0.05 by component."""
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better iterate."""

    @property
    def num_epochs(self) -> int:
        return self.epochs or (3 if self.by == "ingredient" else 5)

    def most_tastes(self, count: int) -> int:
        """For forecasts; the gradients of an epoch cost what two tastes do."""
        return 1 + 3 * self.num_epochs

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        if len(ordered) == 1:
            return single_ingredient_soup(ordered[0])
        names = tuple(each.name for each in ordered)
        iterates = yield from self._descend(names, context)
        return soup_of(iterates, ordered, names)

    def _descend(
        self, names: tuple[str, ...], context: RecipeContext
    ) -> Generator[Question, Answer, list[Iterate]]:
        prefixes = rows_of(context, self.by == "component")
        raw, adam = SoftmaxParameters(np.zeros((len(prefixes), len(names))), 1.0), Adam()
        # The mean exactly as the recipe `uniform` writes it, so that it need be tasted only once.
        start = yield from tasted("equal weights", Mix.mean(names), softmax(raw.weights), [])
        iterates = [start]
        for epoch in range(self.num_epochs):
            losses: list[float] = []
            for batch in range(num_batches(context, self.batch_size)):
                slope = yield MixGradient(
                    mix=mix_of(names, prefixes, softmax(raw.weights)),
                    components=prefixes,
                    epoch=epoch,
                    batch=batch,
                    batch_size=self.batch_size,
                    temperature=raw.temperature,
                )
                assert isinstance(slope, MixGradientResult)
                if not is_finite(slope):
                    return iterates
                raw = raw.step(slope, adam, self._lr)
                losses.append(slope.loss)
            weights = softmax(raw.weights)
            mix, label = mix_of(names, prefixes, weights), f"epoch {epoch + 1}"
            iterates.append((yield from tasted(label, mix, weights, losses)))
            if self.patience and len(iterates) - 1 - best_of(iterates) >= self.patience:
                break
        return iterates

    @property
    def _lr(self) -> float:
        return self.lr or (0.1 if self.by == "ingredient" else 0.05)


@dataclass(frozen=True)
class SoftmaxParameters:
    """What is learned: (component, checkpoint) inputs of the softmax, and the temperature."""

    weights: np.ndarray
    temperature: float

    def step(self, slope: MixGradientResult, adam: Adam, lr: float) -> "SoftmaxParameters":
        down = softmax_slope(softmax(self.weights), np.array(slope.weights))
        values = np.append(self.weights, self.temperature)
        moved = adam.step(values, np.append(down, slope.temperature), lr)
        return SoftmaxParameters(moved[:-1].reshape(self.weights.shape), float(moved[-1]))


def softmax(raw: np.ndarray) -> np.ndarray:
    """Row by row."""
    powers = np.exp(raw - raw.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def softmax_slope(weights: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """d loss / d raw from `weights = softmax(raw)` and d loss / d weights, all of one shape."""
    mean = (weights * slope).sum(axis=1, keepdims=True)
    down: np.ndarray = weights * (slope - mean)
    return down
