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

    Assumes that all ingredients are in the basin of the common base: one that left it, for
    instance by a too high learning rate, ruins the mean. Its selection score chooses nothing.
    """

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return 1

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        ordered = by_score(ingredients)
        mix = Mix.mean([ingredient.name for ingredient in ordered])
        answer = yield Taste(mixes=(mix,))
        assert isinstance(answer, TasteResults)
        decisions = tuple(member_decision(member, len(ordered)) for member in ordered)
        return Soup(mix=mix, score=answer.scores[0], decisions=decisions)


def member_decision(member: Ingredient, num_members: int) -> Decision:
    reason = f"one of {num_members}, all of which belong; alone it scores {member.score:.4f}"
    return Decision(candidate=member.name, accepted=True, reason=reason)
