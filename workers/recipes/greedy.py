"""The recipe `greedy`: add every candidate that does not lower the score, best first."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from workers.recipes.acceptance import Acceptance
from workers.recipes.best import by_score
from workers.types import Answer, Decision, Ingredient, Mix, Question, RecipeContext, Soup


@dataclass(frozen=True)
class Greedy(Acceptance):
    """Greedy soup (Wortsman et al., "Model soups", ICML 2022, recipe 1).

    Candidates by selection score, best first. Each is offered once, and joins if the mean with it
    scores at least as much as the soup without it. So the soup is never worse than the best single
    model on the selection split. It promises no more: a small split cannot show small differences.
    Assumes a common base.

    The recipe asks for the first of the remaining candidates that is good enough. How many are
    tasted at once, and whether a hopeless taste is stopped early, cannot change its answer.
    """

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        return (yield from grow_greedily(self, by_score(ingredients)))


def grow_greedily(
    rule: Acceptance, order: Sequence[Ingredient], first: str = "the best single model"
) -> Generator[Question, Answer, Soup]:
    """Start from the first ingredient, called `first` in reasons; offer each other one once."""
    members, queue = [order[0].name], [candidate.name for candidate in order[1:]]
    current = yield from rule.start(Mix.mean(members), order[0].score)
    decisions = [start_decision(order[0], first)]
    while queue:
        offer = yield from rule.offer(queue, lambda name: Mix.mean([*members, name]), current)
        decisions += offer.decisions
        current = offer.current
        if offer.index is None:
            break
        members.append(queue[offer.index])
        queue = queue[offer.index + 1 :]
    return Soup(mix=Mix.mean(members), score=current.score, decisions=tuple(decisions))


def start_decision(ingredient: Ingredient, why: str) -> Decision:
    score = ingredient.score
    reason = f"{why} starts the soup with {score:.4f}"
    return Decision(candidate=ingredient.name, accepted=True, after=score, reason=reason)
