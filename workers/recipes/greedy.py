"""The recipe `greedy`: add what does not hurt, best first."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from workers.recipes.acceptance import Acceptance
from workers.recipes.best import by_score
from workers.types import Answer, Decision, Ingredient, Mix, Question, RecipeContext, Soup


@dataclass(frozen=True)
class Greedy(Acceptance):
    """Greedy soup (Wortsman et al., "Model soups", ICML 2022, recipe 1).

    Candidates by selection score, best first; each is offered once, and joins when the mean with
    it scores at least what the soup scores without it. So the soup is never worse than the best
    single model on the selection split, which is also all it promises: a small split cannot see
    small differences. Assumes a common base.

    The recipe asks for the first of the remaining candidates that is good enough; how many are
    tasted at once, and whether a hopeless taste is stopped early, cannot change its answer.
    """

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        return (yield from grow_greedily(self, by_score(ingredients)))


def grow_greedily(
    rule: Acceptance, order: Sequence[Ingredient], first: str = "the best single model"
) -> Generator[Question, Answer, Soup]:
    """The first starts the soup, for the reason given; each of the others is offered once."""
    members, queue = [order[0].name], [each.name for each in order[1:]]
    held = yield from rule.start(Mix.mean(members), order[0].score)
    decisions = [start_decision(order[0], first)]
    while queue:
        turn = yield from rule.offer(queue, lambda name: Mix.mean([*members, name]), held)
        decisions += turn.decisions
        held = turn.held
        if turn.index is None:
            break
        members.append(queue[turn.index])
        queue = queue[turn.index + 1 :]
    return Soup(mix=Mix.mean(members), score=held.score, decisions=tuple(decisions))


def start_decision(ingredient: Ingredient, why: str) -> Decision:
    score = ingredient.score
    reason = f"{why} starts the soup with {score:.4f}"
    return Decision(candidate=ingredient.name, accepted=True, after=score, reason=reason)
