"""The recipe `greedy_replacement`: greedy in several passes; members may join again."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

from pydantic import PositiveInt

from workers.recipes.acceptance import Acceptance, OfferResult
from workers.recipes.best import by_score
from workers.recipes.greedy import start_decision
from workers.types import Answer, Decision, Ingredient, Mix, Question, RecipeContext, Soup


@dataclass(frozen=True)
class GreedyReplacement(Acceptance):
    """Greedy soup with replacement (Wortsman et al., "Model soups", ICML 2022, appendix; in the
    manner of Caruana et al., "Ensemble selection", ICML 2004).

    The first pass is greedy's. Every further pass offers all candidates again, members included,
    best first: one that joins twice weighs two, and so on. It ends with a pass that changes
    nothing, at the latest after `passes`. Patience ends a pass. An ingredient that is the whole
    soup is not offered to it.
    """

    passes: PositiveInt = 3

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return self.passes * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        counts = {ordered[0].name: 1}
        current = yield from self.start(weighted(counts), ordered[0].score)
        decisions = [start_decision(ordered[0], "the best single model")]
        for number in range(1, self.passes + 1):
            queue = [candidate.name for candidate in ordered[1 if number == 1 else 0 :]]
            size = sum(counts.values())
            while queue := [name for name in queue if counts.keys() != {name}]:
                offer = yield from self.offer(queue, partial(_joined, counts), current)
                decisions += _decisions(offer, number)
                current = offer.current
                if offer.index is None:
                    break
                counts = _with(counts, queue[offer.index])
                queue = queue[offer.index + 1 :]
            if sum(counts.values()) == size:
                break
        return Soup(mix=weighted(counts), score=current.score, decisions=tuple(decisions))


def weighted(counts: dict[str, int]) -> Mix:
    """The mix in lowest terms: two of each is one of each, whose score is known."""
    common = math.gcd(*counts.values())
    weights = tuple((name, float(count // common)) for name, count in counts.items())
    return Mix(weights=weights, divisor=float(sum(counts.values()) // common))


def _joined(counts: dict[str, int], name: str) -> Mix:
    return weighted(_with(counts, name))


def _with(counts: dict[str, int], name: str) -> dict[str, int]:
    return {**counts, name: counts.get(name, 0) + 1}


def _decisions(offer: OfferResult, number: int) -> list[Decision]:
    if number == 1:
        return list(offer.decisions)
    return [
        decision.model_copy(update={"reason": f"pass {number}: {decision.reason}"})
        for decision in offer.decisions
    ]
