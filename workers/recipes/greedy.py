"""The recipe `greedy`: add what does not hurt, best first."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from workers.recipes.best import best_first
from workers.types import (
    Answer,
    Decision,
    First,
    Found,
    Ingredient,
    Mix,
    Question,
    Soup,
    Tasting,
)

AT_ONCE = 64
"""Candidates per question, many more than any fleet tastes at once: a question names every member
of every mix, and a thousand candidates in one would fill the ledger."""


@dataclass(frozen=True)
class Greedy:
    """Greedy soup (Wortsman et al., "Model soups", ICML 2022, recipe 1).

    Candidates by selection score, best first; each is offered once, and joins when the mean with
    it scores at least what the soup scores without it. So the soup is never worse than the best
    single model on the selection split, which is also all it promises: a small split cannot see
    small differences. Assumes a common base.

    The recipe asks for the first of the remaining candidates that is good enough; how many are
    tasted at once, and whether a hopeless taste is stopped early, cannot change its answer.
    """

    tie: Literal["accept", "strict"] = "accept"
    """`accept` takes an equal score (the paper's rule), `strict` asks for a higher one."""

    def __call__(self, ingredients: tuple[Ingredient, ...]) -> Generator[Question, Answer, Soup]:
        best, *queue = best_first(ingredients)
        members, score = [best.name], best.score
        decisions = [_starts(best)]
        while queue:
            mixes = tuple(Mix.mean([*members, each.name]) for each in queue[:AT_ONCE])
            found = yield First(mixes=mixes, at_least=score, strict=self.tie == "strict")
            assert isinstance(found, Found)
            for candidate, tasting in zip(queue, found.tried, strict=False):
                decisions.append(self._decided(candidate, tasting, score))
            if found.index is None:
                queue = queue[AT_ONCE:]
                continue
            tasted = found.tried[found.index].score
            assert tasted is not None, "an accepted mix was tasted completely"
            members.append(queue[found.index].name)
            score, queue = tasted, queue[found.index + 1 :]
        return Soup(mix=Mix.mean(members), score=score, decisions=tuple(decisions))

    def _decided(self, candidate: Ingredient, tasting: Tasting, before: float) -> Decision:
        accepted, reason = self._verdict(tasting, before)
        stopped = tasting.score is None
        return Decision(
            candidate=candidate.name,
            accepted=accepted,
            before=before,
            after=tasting.score,
            at_most=tasting.at_most if stopped else None,
            reason=reason,
        )

    def _verdict(self, tasting: Tasting, before: float) -> tuple[bool, str]:
        after = tasting.score
        if after is None:
            seen = f"after {tasting.samples} images it could reach at most {tasting.at_most:.4f}"
            return False, f"{seen}, the soup without it scores {before:.4f}"
        if after > before:
            return True, f"raises the score from {before:.4f} to {after:.4f}"
        if after < before:
            return False, f"would lower the score from {before:.4f} to {after:.4f}"
        if self.tie == "strict":
            return False, f"leaves the score at {before:.4f}, and the rule asks for a gain"
        return True, f"keeps the score at {before:.4f}, and the rule accepts ties"


def _starts(best: Ingredient) -> Decision:
    reason = f"the best single model starts the soup with {best.score:.4f}"
    return Decision(candidate=best.name, accepted=True, after=best.score, reason=reason)
