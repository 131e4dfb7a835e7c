"""The recipe `manifold`: one proportion per component for every new ingredient, by search."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from cmaes import CMA
from pydantic import Field, PositiveInt

from workers.recipes.acceptance import MAX_CANDIDATES, not_offered
from workers.recipes.best import by_score
from workers.recipes.gradient_descent import EVERYTHING, mix_of
from workers.recipes.greedy import start_decision
from workers.types import (
    Answer,
    Decision,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    Mix,
    Question,
    RecipeContext,
    Soup,
    Taste,
    TasteResult,
    TasteResults,
)


@dataclass(frozen=True)
class Manifold:
    """Manifold mixing model soup (Fassold, "Do the Frankenstein, or how to achieve better
    out-of-distribution performance with manifold mixing model soup", 2023), phase 1.

    Candidates by selection score, best first. A candidate is first mixed in evenly: the soup of K
    keeps the share K / (K + 1) of every component. Below `tau` times the soup's score it is left
    at that. Else CMA-ES (Hansen and Ostermeier, 2001; the authors use COBYLA) seeks a share per
    component, within half the way from K / (K + 1) to 1 on either side, and the candidate joins
    when the best mix seen scores at least what the soup does. So the soup is never worse than the
    best single model on the selection split, on which many more mixes are tried than by other
    recipes: a small split is soon fitted. Assumes a common base.
    """

    tau: Annotated[float, Field(gt=0, le=1)] = 0.998
    """Of the soup's score, for the even mix to be worth a search."""
    budget: Annotated[int, Field(ge=0)] = 4
    """Most tastes of a search, times the number of components; the authors' is 30."""
    max_components: PositiveInt = 8
    """Neighbours are grouped so that there are no more than the authors' 8."""
    tie: Literal["accept", "strict"] = "accept"
    """`accept` takes an equal score (the paper's rule), `strict` asks for a higher one."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """By how much the score must rise."""
    patience: PositiveInt | None = None
    """After so many refusals in a row the rest is not offered; None offers everybody."""

    def most_tastes(self, count: int) -> int:
        """Of `count` ingredients, for forecasts."""
        return count * (1 + self.budget * self.max_components)

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        best, *queue = by_score(ingredients)
        groups = grouped(context.components, self.max_components)
        pot = PartialSoup((best.name,), groups, np.ones((len(groups) + 1, 1)), best.score)
        decisions = [start_decision(best, "the best single model")]
        num_refused = 0
        while queue and num_refused != self.patience:
            heard = len(queue) if self.patience is None else self.patience - num_refused
            width = min(MAX_CANDIDATES, heard)
            mixes = tuple(pot.with_(each.name).mix for each in queue[:width])
            found = yield FirstAtLeast(mixes=mixes, at_least=self._threshold(pot.score))
            assert isinstance(found, FirstResult)
            skipped = found.tried if found.index is None else found.tried[:-1]
            for each, tasting in zip(queue, skipped, strict=False):
                decisions.append(self._skipped(each, tasting, pot))
            num_refused += len(skipped)
            if found.index is None:
                queue = queue[width:]
                continue
            tasted, candidate = found.tried[found.index].score, queue[found.index]
            assert tasted is not None, "an even mix that met the bar was tasted completely"
            even = replace(pot.with_(candidate.name), score=tasted)
            tried, num_tastes = yield from self._search(pot, even, context.seed)
            decision = self._decided(candidate, pot, even, tried, num_tastes)
            decisions.append(decision)
            pot, queue = tried if decision.accepted else pot, queue[found.index + 1 :]
            num_refused = 0 if decision.accepted else num_refused + 1
        decisions += [not_offered(each.name, num_refused) for each in queue]
        return Soup(mix=pot.mix, score=pot.score, decisions=tuple(decisions))

    def _threshold(self, score: float) -> float:
        # A negative log-likelihood is negative: its bar lies below it all the same.
        return score - (1 - self.tau) * abs(score)

    def _search(
        self, pot: "PartialSoup", even: "PartialSoup", seed: int
    ) -> Generator[Question, Answer, tuple["PartialSoup", int]]:
        """The best mix seen, the even one included, and how many were tasted beside it."""
        size = len(pot.names)
        middle, half = size / (size + 1), 0.5 / (size + 1)
        num = max(1, len(pot.groups))
        bounds = np.tile([[middle - half, middle + half]], (num, 1))
        # A stream of its own for every candidate: CMA takes 32 bits.
        own = np.random.SeedSequence([seed, *even.names[-1].encode()]).generate_state(1)[0]
        search = CMA(mean=np.full(num, middle), sigma=half / 2, bounds=bounds, seed=int(own))
        best, num_tastes = even, 0
        while num_tastes + search.population_size <= self.budget * num:
            asked = [search.ask() for _ in range(search.population_size)]
            pots = [pot.with_(even.names[-1], shares) for shares in asked]
            answer = yield Taste(mixes=tuple(each.mix for each in pots))
            assert isinstance(answer, TasteResults)
            for each, score in zip(pots, answer.scores, strict=True):
                best = replace(each, score=score) if score > best.score else best
            scores = [-score for score in answer.scores]
            search.tell(list(zip(asked, scores, strict=True)))
            num_tastes += search.population_size
        return best, num_tastes

    def _skipped(self, each: Ingredient, tasting: TasteResult, pot: "PartialSoup") -> Decision:
        after = tasting.score
        seen = f"{after:.4f}" if after is not None else f"at most {tasting.at_most:.4f}"
        reason = (
            f"mixed in evenly it scores {seen}, below {self._threshold(pot.score):.4f}: no search"
        )
        at_most = tasting.at_most if after is None else None
        return Decision(
            candidate=each.name,
            accepted=False,
            before=pot.score,
            after=after,
            at_most=at_most,
            reason=reason,
        )

    def _decided(
        self,
        candidate: Ingredient,
        pot: "PartialSoup",
        even: "PartialSoup",
        tried: "PartialSoup",
        num_tastes: int,
    ) -> Decision:
        gain = tried.score - pot.score
        if self.min_delta:
            # Rounded, so that 0.1 + 0.2 is no more than the 0.3 that 30 images of 100 score.
            gain = round(gain - self.min_delta, 12)
        accepted = gain > 0 or (gain == 0 and self.tie == "accept")
        own = tried.weights[1:, -1] if len(tried.weights) > 1 else tried.weights[:, -1]
        reason = (
            f"evenly {even.score:.4f}, after {num_tastes} more tastes {tried.score:.4f} with "
            f"shares of {own.min():.3f} to {own.max():.3f}; the soup without it {pot.score:.4f}"
        )
        return Decision(
            candidate=candidate.name,
            accepted=accepted,
            before=pot.score,
            after=tried.score,
            reason=reason,
        )


@dataclass(frozen=True)
class PartialSoup:
    """A soup under way: (1 + groups, members) weights, whose first row holds outside all groups."""

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    weights: np.ndarray
    score: float

    def with_(self, name: str, shares: np.ndarray | None = None) -> "PartialSoup":
        """With one more, where the soup so far keeps these shares of the groups; by default, and
        outside all groups, K / (K + 1)."""
        kept = np.full((len(self.weights), 1), len(self.names) / (len(self.names) + 1))
        if shares is not None:
            kept[-len(shares) :, 0] = shares
        weights = np.hstack([kept * self.weights, 1 - kept])
        return PartialSoup((*self.names, name), self.groups, weights, self.score)

    @property
    def mix(self) -> Mix:
        if len(self.names) == 1:
            return Mix.mean(self.names)
        prefixes = (EVERYTHING, *(prefix for group in self.groups for prefix in group))
        sizes = [1, *map(len, self.groups)]
        return mix_of(self.names, prefixes, np.repeat(self.weights, sizes, axis=0))


def grouped(components: tuple[str, ...], most: int) -> tuple[tuple[str, ...], ...]:
    """Neighbours together, in at most so many groups of nearly the same size."""
    if not components:
        return ()
    num = min(most, len(components))
    cuts = [len(components) * i // num for i in range(num + 1)]
    return tuple(components[low:high] for low, high in zip(cuts, cuts[1:], strict=False))
