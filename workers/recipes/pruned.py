"""The recipes `pruned` and `pruned_rounds`: start from everybody, leave out what is not missed."""

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

    From the mean of all, worst to best: who is not missed leaves, that is, when the mean of the
    others scores at least as much. So the soup never scores less than uniform on the selection
    split. Every candidate soup is made anew from its members, none by subtraction. At least one
    member stays. It ends with a pass that removes nobody, at the latest after `passes`; patience
    ends a pass.
    """

    passes: PositiveInt = 1
    best_removable: bool = False
    """Whether the best single model may leave as well."""

    def most_tastes(self, count: int) -> int:
        """Of `count` ingredients, for forecasts."""
        return 1 + self.passes * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        soup = yield from _everybody(self, ingredients)
        for _ in range(self.passes):
            size, queue = len(soup.members), soup.removable(self.best_removable)
            while queue and len(soup.members) > 1:
                turn = yield from soup.offered(self, queue)
                soup = soup.after(turn, queue)
                queue = [] if turn.index is None else queue[turn.index + 1 :]
            if len(soup.members) == size:
                break
        return soup.finished()


@dataclass(frozen=True)
class PrunedRounds(Acceptance):
    """Pruned soup, one removal per round: the first from worst to best that is not missed leaves,
    then a new round begins with the worst. It ends with a round that removes nobody, at the latest
    after `rounds`. At least one member stays.
    """

    rounds: PositiveInt = 8
    best_removable: bool = True
    """Whether the best single model may leave as well."""

    def most_tastes(self, count: int) -> int:
        """Of `count` ingredients, for forecasts."""
        return 1 + self.rounds * count

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        soup = yield from _everybody(self, ingredients)
        for _ in range(self.rounds):
            queue = soup.removable(self.best_removable)
            if len(soup.members) == 1:
                break
            turn = yield from soup.offered(self, queue)
            soup = soup.after(turn, queue)
            if turn.index is None:
                break
        return soup.finished()


@dataclass(frozen=True)
class _Pruning:
    """The soup so far."""

    best: str
    members: tuple[str, ...]
    """Best first."""
    held: CurrentSoup
    decisions: tuple[Decision, ...]

    def removable(self, best_removable: bool) -> list[str]:
        """Worst first."""
        return [name for name in reversed(self.members) if best_removable or name != self.best]

    def without(self, name: str) -> tuple[str, ...]:
        return tuple(member for member in self.members if member != name)

    def offered(
        self, rule: Acceptance, queue: list[str]
    ) -> Generator[Question, Answer, OfferResult]:
        return rule.offer(
            queue, lambda name: Mix.mean(self.without(name)), self.held, "the soup with it"
        )

    def after(self, turn: OfferResult, queue: list[str]) -> "_Pruning":
        members = self.members if turn.index is None else self.without(queue[turn.index])
        said = tuple(
            each.model_copy(update={"candidate": f"without {each.candidate}"})
            for each in turn.decisions
        )
        return _Pruning(self.best, members, turn.held, (*self.decisions, *said))

    def finished(self) -> Soup:
        return Soup(mix=Mix.mean(self.members), score=self.held.score, decisions=self.decisions)


def _everybody(
    rule: Acceptance, ingredients: tuple[Ingredient, ...]
) -> Generator[Question, Answer, _Pruning]:
    members = tuple(each.name for each in by_score(ingredients))
    held = yield from rule.start(Mix.mean(members), None)
    reason = f"the mean of all {len(members)} starts with {held.score:.4f}"
    first = Decision(candidate="all", accepted=True, after=held.score, reason=reason)
    return _Pruning(members[0], members, held, (first,))
