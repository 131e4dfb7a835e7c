"""The recipes `pruned` and `pruned_rounds`: from the mean of all, remove what it can do without."""

from collections.abc import Generator
from dataclasses import dataclass

from pydantic import PositiveInt

from workers.recipes.acceptance import Acceptance, CurrentSoup, OfferResult
from workers.recipes.best import by_score
from workers.types import Answer, Decision, Ingredient, Mix, Question, RecipeContext, Soup


@dataclass(frozen=True)
class Pruned(Acceptance):
    """Pruned soup (Dansereau et al., "Model soups to increase inference without increasing compute
    time", 2023).

    From the mean of all, worst to best: an ingredient is removed if the mean of the others scores
    at least as much. So the soup never scores less than uniform on the selection split. Every
    candidate soup is blended from its members, none by subtraction. At least one member stays. It
    ends with a pass that removes none, at the latest after `passes`; patience ends a pass.
    """

    passes: PositiveInt = 1
    best_removable: bool = False
    """Whether the best single model may be removed as well."""

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return 1 + self.passes * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        soup = yield from _mean_of_all(self, ingredients)
        for _ in range(self.passes):
            size, queue = len(soup.members), soup.removable(self.best_removable)
            while queue and len(soup.members) > 1:
                offer = yield from soup.offer(self, queue)
                soup = soup.after(offer, queue)
                queue = [] if offer.index is None else queue[offer.index + 1 :]
            if len(soup.members) == size:
                break
        return soup.soup


@dataclass(frozen=True)
class PrunedRounds(Acceptance):
    """Pruned soup, one removal per round: the first that passes, from worst to best. The next round
    begins with the worst again. It ends with a round that removes none, at the latest after
    `rounds`. At least one member stays.
    """

    rounds: PositiveInt = 8
    best_removable: bool = True
    """Whether the best single model may be removed as well."""

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return 1 + self.rounds * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        soup = yield from _mean_of_all(self, ingredients)
        for _ in range(self.rounds):
            queue = soup.removable(self.best_removable)
            if len(soup.members) == 1:
                break
            offer = yield from soup.offer(self, queue)
            soup = soup.after(offer, queue)
            if offer.index is None:
                break
        return soup.soup


@dataclass(frozen=True)
class _PartialSoup:
    """The soup so far."""

    best: str
    members: tuple[str, ...]
    """Best first."""
    current: CurrentSoup
    decisions: tuple[Decision, ...]

    def removable(self, best_removable: bool) -> list[str]:
        """Worst first."""
        return [name for name in reversed(self.members) if best_removable or name != self.best]

    def without(self, name: str) -> tuple[str, ...]:
        return tuple(member for member in self.members if member != name)

    def offer(self, rule: Acceptance, queue: list[str]) -> Generator[Question, Answer, OfferResult]:
        return rule.offer(
            queue, lambda name: Mix.mean(self.without(name)), self.current, "the soup with it"
        )

    def after(self, offer: OfferResult, queue: list[str]) -> "_PartialSoup":
        members = self.members if offer.index is None else self.without(queue[offer.index])
        decisions = tuple(
            decision.model_copy(update={"candidate": f"without {decision.candidate}"})
            for decision in offer.decisions
        )
        return _PartialSoup(self.best, members, offer.current, (*self.decisions, *decisions))

    @property
    def soup(self) -> Soup:
        mix = Mix.mean(self.members)
        return Soup(mix=mix, score=self.current.score, decisions=self.decisions)


def _mean_of_all(
    rule: Acceptance, ingredients: tuple[Ingredient, ...]
) -> Generator[Question, Answer, _PartialSoup]:
    members = tuple(ingredient.name for ingredient in by_score(ingredients))
    current = yield from rule.start(Mix.mean(members), None)
    reason = f"the mean of all {len(members)} starts with {current.score:.4f}"
    first = Decision(candidate="all", accepted=True, after=current.score, reason=reason)
    return _PartialSoup(members[0], members, current, (first,))
