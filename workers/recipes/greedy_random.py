"""The recipe `greedy_random`: greedy with the candidates in random order."""

import statistics
from collections.abc import Generator
from dataclasses import dataclass

from pydantic import PositiveInt

from workers.recipes.acceptance import Acceptance
from workers.recipes.best import by_score
from workers.recipes.greedy import grow_greedily
from workers.types import Answer, Decision, Ingredient, Question, RecipeContext, Soup, digest


@dataclass(frozen=True)
class GreedyRandom(Acceptance):
    """Greedy soup in random order (Wortsman et al., "Model soups", ICML 2022, table 3).

    Shows how much greedy owes to its order. An order is a function of the experiment's seed, `seed`
    and the names of the ingredients; a new ingredient leaves the others in their order. Of several
    orders the soup with the highest selection score is made, the first among equals. The decisions
    contain the spread of the scores.
    """

    seed: int = 0
    best_first: bool = True
    """Start from the best single model, so that the soup cannot score less; else from the first
    in random order."""
    orders: PositiveInt = 1

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return self.orders * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        first = "the best single model" if self.best_first else "the first in random order"
        soups: list[Soup] = []
        for number in range(self.orders):
            order = self.order(ingredients, context.seed, number)
            soups.append((yield from grow_greedily(self, order, first)))
        if self.orders == 1:
            return soups[0]
        best = max(soups, key=_score)
        compared = _compared(soups, soups.index(best))
        return best.model_copy(update={"decisions": (*compared, *best.decisions)})

    def order(
        self, ingredients: tuple[Ingredient, ...], experiment_seed: int, number: int
    ) -> list[Ingredient]:
        best, *others = by_score(ingredients)
        shuffled = sorted(
            others if self.best_first else [best, *others],
            key=lambda other: digest([experiment_seed, self.seed, number, other.name], 32),
        )
        return [best, *shuffled] if self.best_first else shuffled


def _compared(soups: list[Soup], chosen: int) -> list[Decision]:
    scores = [_score(soup) for soup in soups]
    spread = (
        f"{len(soups)} orders score {min(scores):.4f} to {max(scores):.4f}, "
        f"mean {statistics.fmean(scores):.4f}, deviation {statistics.stdev(scores):.4f}"
    )
    return [
        Decision(
            candidate=f"order {i + 1}",
            accepted=i == chosen,
            after=scores[i],
            reason=f"makes a soup of {len(soup.mix.names)}; {spread}",
        )
        for i, soup in enumerate(soups)
    ]


def _score(soup: Soup) -> float:
    assert soup.score is not None
    return soup.score
