"""The recipe `greedy_replacement`: greedy in several passes, members may join again."""

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

    The first pass is greedy's. Each further one offers everybody again, best first and members
    included: who joins a second time weighs two, and so on. It ends with a pass that changes
    nothing, at the latest after `passes`. Patience ends a pass. Whoever is the whole soup is not
    offered to it.
    """

    passes: PositiveInt = 3

    def most_tastes(self, count: int) -> int:
        """Of `count` ingredients, for forecasts."""
        return self.passes * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        counts = {ordered[0].name: 1}
        held = yield from self.start(weighted(counts), ordered[0].score)
        decisions = [start_decision(ordered[0], "the best single model")]
        for number in range(1, self.passes + 1):
            queue = [each.name for each in ordered[1 if number == 1 else 0 :]]
            size = sum(counts.values())
            while queue := [name for name in queue if counts.keys() != {name}]:
                turn = yield from self.offer(queue, partial(_joined, counts), held)
                decisions += _said(turn, number)
                held = turn.held
                if turn.index is None:
                    break
                counts = _with(counts, queue[turn.index])
                queue = queue[turn.index + 1 :]
            if sum(counts.values()) == size:
                break
        return Soup(mix=weighted(counts), score=held.score, decisions=tuple(decisions))


def weighted(counts: dict[str, int]) -> Mix:
    """In lowest terms: two of each is one of each, and has been tasted."""
    common = math.gcd(*counts.values())
    weights = tuple((name, float(count // common)) for name, count in counts.items())
    return Mix(weights=weights, divisor=float(sum(counts.values()) // common))


def _joined(counts: dict[str, int], name: str) -> Mix:
    return weighted(_with(counts, name))


def _with(counts: dict[str, int], name: str) -> dict[str, int]:
    return {**counts, name: counts.get(name, 0) + 1}


def _said(turn: OfferResult, number: int) -> list[Decision]:
    if number == 1:
        return list(turn.decisions)
    return [
        each.model_copy(update={"reason": f"pass {number}: {each.reason}"})
        for each in turn.decisions
    ]
