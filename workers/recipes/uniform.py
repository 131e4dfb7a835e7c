"""The recipe `uniform`: the plain mean of all ingredients."""

from collections.abc import Generator
from dataclasses import dataclass

from workers.recipes.best import by_score
from workers.types import (
    Answer,
    Decision,
    Ingredient,
    Mix,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResults,
)


@dataclass(frozen=True)
class Uniform:
    """Uniform soup (Wortsman et al., "Model soups", ICML 2022, section 2).

    Assumes that every ingredient lies in the basin of the common base: one that left it, say by
    a too high learning rate, spoils the mean. Its selection score is asked for, and chooses
    nothing.
    """

    def most_tastes(self, count: int) -> int:
        """Of `count` ingredients, for forecasts."""
        return 1

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        mix = Mix.mean([each.name for each in ordered])
        answer = yield Taste(mixes=(mix,))
        assert isinstance(answer, TasteResults)
        decisions = tuple(member_decision(each, len(ordered)) for each in ordered)
        return Soup(mix=mix, score=answer.scores[0], decisions=decisions)


def member_decision(each: Ingredient, num_members: int) -> Decision:
    reason = f"one of {num_members}, all of which belong; alone it scores {each.score:.4f}"
    return Decision(candidate=each.name, accepted=True, reason=reason)
