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
    prefixes_of,
    single_ingredient_soup,
    soup_of,
    taste_iterate,
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
    component. The temperature is learned as well, and is not part of the soup. The descent starts
    from equal weights. Its iterate is tasted after each epoch, and the best one is returned: the
    highest score among those whose selection NLL is not above that of equal weights, ties by the
    lower NLL. The paper's authors hold every ingredient in memory; here a step needs one blended
    model. Assumes a common base, and a selection split large enough to learn from.
    """

    by: Literal["ingredient", "component"] = "ingredient"
    """One softmax for all tensors, or one per component."""
    epochs: PositiveInt | None = None
    """Passes over the selection split. None: the published 3 by ingredient, 5 by component."""
    batch_size: PositiveInt = 256
    lr: PositiveFloat | None = None
    """Constant learning rate. None: the published 0.1 by ingredient, 0.05 by component."""
    patience: PositiveInt | None = None
    """Epochs without a better iterate after which to stop. None: never."""

    @property
    def num_epochs(self) -> int:
        return self.epochs or (3 if self.by == "ingredient" else 5)

    def most_tastes(self, count: int) -> int:
        """For estimates; the gradients of an epoch cost as much as two tastes."""
        return 1 + 3 * self.num_epochs

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        if len(ordered) == 1:
            return single_ingredient_soup(ordered[0])
        names = tuple(ingredient.name for ingredient in ordered)
        iterates = yield from self._descend(names, context)
        return soup_of(iterates, ordered, names)

    def _descend(
        self, names: tuple[str, ...], context: RecipeContext
    ) -> Generator[Question, Answer, list[Iterate]]:
        prefixes = prefixes_of(context, self.by == "component")
        parameters, adam = SoftmaxParameters(np.zeros((len(prefixes), len(names))), 1.0), Adam()
        # The mean exactly as the recipe `uniform` writes it, so that it is tasted only once.
        mean, weights = Mix.mean(names), softmax(parameters.weights)
        iterates = [(yield from taste_iterate("equal weights", mean, weights, []))]
        for epoch in range(self.num_epochs):
            losses: list[float] = []
            for batch in range(num_batches(context, self.batch_size)):
                result = yield MixGradient(
                    mix=mix_of(names, prefixes, softmax(parameters.weights)),
                    components=prefixes,
                    epoch=epoch,
                    batch=batch,
                    batch_size=self.batch_size,
                    temperature=parameters.temperature,
                )
                assert isinstance(result, MixGradientResult)
                if not is_finite(result):
                    return iterates
                parameters = parameters.step(result, adam, self._lr)
                losses.append(result.loss)
            weights = softmax(parameters.weights)
            mix, label = mix_of(names, prefixes, weights), f"epoch {epoch + 1}"
            iterates.append((yield from taste_iterate(label, mix, weights, losses)))
            if self.patience and len(iterates) - 1 - best_of(iterates) >= self.patience:
                break
        return iterates

    @property
    def _lr(self) -> float:
        return self.lr or (0.1 if self.by == "ingredient" else 0.05)


@dataclass(frozen=True)
class SoftmaxParameters:
    """Learned parameters: (component, checkpoint) inputs of the softmax, and the temperature."""

    weights: np.ndarray
    temperature: float

    def step(self, result: MixGradientResult, adam: Adam, lr: float) -> "SoftmaxParameters":
        gradient = softmax_gradient(softmax(self.weights), np.array(result.weights))
        values = np.append(self.weights, self.temperature)
        moved = adam.step(values, np.append(gradient, result.temperature), lr)
        return SoftmaxParameters(moved[:-1].reshape(self.weights.shape), float(moved[-1]))


def softmax(inputs: np.ndarray) -> np.ndarray:
    """The softmax of each row."""
    powers = np.exp(inputs - inputs.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def softmax_gradient(weights: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """d loss / d inputs from `weights = softmax(inputs)` and d loss / d weights, of one shape."""
    mean = (weights * gradient).sum(axis=1, keepdims=True)
    result: np.ndarray = weights * (gradient - mean)
    return result
