"""The recipe `best`: no averaging at all, the best single model, which every soup must beat."""

from collections.abc import Generator
from dataclasses import dataclass

from workers.types import Answer, Decision, Ingredient, Mix, Question, RecipeContext, Soup


def by_score(ingredients: tuple[Ingredient, ...]) -> list[Ingredient]:
    """Ingredients by selection score, highest first; ties by run id, then by name."""
    if not ingredients:
        raise ValueError("a recipe needs at least one ingredient, got none")
    return sorted(ingredients, key=lambda i: (-i.score, i.run, i.name))


@dataclass(frozen=True)
class Best:
    """The checkpoint with the highest selection score. Asks nothing."""

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return 0

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        yield from ()
        best, *rest = by_score(ingredients)
        decisions = [_chosen(best)] + [_left_out(other, best) for other in rest]
        return Soup(mix=Mix.mean([best.name]), score=best.score, decisions=tuple(decisions))


def _chosen(best: Ingredient) -> Decision:
    reason = f"the highest selection score, {best.score:.4f}"
    return Decision(candidate=best.name, accepted=True, after=best.score, reason=reason)


def _left_out(other: Ingredient, best: Ingredient) -> Decision:
    relation = "equals" if other.score == best.score else "is below"
    reason = f"its score {other.score:.4f} {relation} that of {best.name}, {best.score:.4f}"
    if other.score == best.score:
        reason += ", and ties go to the first run by id"
    return Decision(candidate=other.name, accepted=False, reason=reason)
