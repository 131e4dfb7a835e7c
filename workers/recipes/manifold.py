"""The recipe `manifold`: searches one share per component for every new ingredient."""

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
    keeps the share K / (K + 1) of every component. A candidate below `tau` times the soup's score
    is refused. For others CMA-ES (Hansen and Ostermeier, 2001; the authors use COBYLA) searches a
    share per component, within half the way from K / (K + 1) to 1 on either side. The candidate
    joins if the best mix scores at least as much as the soup. So the soup is never worse than the
    best single model on the selection split. Many more mixes are tried than by other recipes, so
    a small split is soon overfitted. Assumes a common base.
    """

    tau: Annotated[float, Field(gt=0, le=1)] = 0.998
    """Share of the soup's score that the even mix needs for a search."""
    budget: Annotated[int, Field(ge=0)] = 4
    """Most tastes of a search per component; the authors use 30."""
    max_components: PositiveInt = 8
    """Neighbours are grouped into at most so many; the authors use 8."""
    tie: Literal["accept", "strict"] = "accept"
    """`accept` accepts an equal score (the paper's rule), `strict` asks for a higher one."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Least rise of the score."""
    patience: PositiveInt | None = None
    """Refusals in a row after which the rest is not offered. None: all are offered."""

    def most_tastes(self, count: int) -> int:
        """Passes over the selection split with `count` ingredients, for estimates."""
        return count * (1 + self.budget * self.max_components)

    def __call__(
        self, ingredients: tuple[Ingredient, ...], context: RecipeContext
    ) -> Generator[Question, Answer, Soup]:
        best, *queue = by_score(ingredients)
        groups = grouped(context.components, self.max_components)
        soup = PartialSoup((best.name,), groups, np.ones((len(groups) + 1, 1)), best.score)
        decisions = [start_decision(best, "the best single model")]
        num_refused = 0
        while queue and num_refused != self.patience:
            offered = len(queue) if self.patience is None else self.patience - num_refused
            width = min(MAX_CANDIDATES, offered)
            mixes = tuple(soup.with_(candidate.name).mix for candidate in queue[:width])
            first = yield FirstAtLeast(mixes=mixes, at_least=self._threshold(soup.score))
            assert isinstance(first, FirstResult)
            refused = first.tried if first.index is None else first.tried[:-1]
            for candidate, result in zip(queue, refused, strict=False):
                decisions.append(self._refusal(candidate, result, soup))
            num_refused += len(refused)
            if first.index is None:
                queue = queue[width:]
                continue
            score, candidate = first.tried[first.index].score, queue[first.index]
            assert score is not None, "an even mix above the threshold was tasted completely"
            even = replace(soup.with_(candidate.name), score=score)
            best_mix, num_tastes = yield from self._search(soup, even, context.seed)
            decision = self._decision(candidate, soup, even, best_mix, num_tastes)
            decisions.append(decision)
            soup, queue = best_mix if decision.accepted else soup, queue[first.index + 1 :]
            num_refused = 0 if decision.accepted else num_refused + 1
        decisions += [not_offered(candidate.name, num_refused) for candidate in queue]
        return Soup(mix=soup.mix, score=soup.score, decisions=tuple(decisions))

    def _threshold(self, score: float) -> float:
        # The score may be negative, as a negated NLL is; the threshold is below it all the same.
        return score - (1 - self.tau) * abs(score)

    def _search(
        self, soup: "PartialSoup", even: "PartialSoup", seed: int
    ) -> Generator[Question, Answer, tuple["PartialSoup", int]]:
        """(the best mix, the even one included; how many other mixes were tasted)."""
        size = len(soup.names)
        middle, half = size / (size + 1), 0.5 / (size + 1)
        num = max(1, len(soup.groups))
        bounds = np.tile([[middle - half, middle + half]], (num, 1))
        # Every candidate has a random stream of its own; CMA takes 32 bits.
        own = np.random.SeedSequence([seed, *even.names[-1].encode()]).generate_state(1)[0]
        search = CMA(mean=np.full(num, middle), sigma=half / 2, bounds=bounds, seed=int(own))
        best, num_tastes = even, 0
        while num_tastes + search.population_size <= self.budget * num:
            points = [search.ask() for _ in range(search.population_size)]
            soups = [soup.with_(even.names[-1], shares) for shares in points]
            answer = yield Taste(mixes=tuple(tried.mix for tried in soups))
            assert isinstance(answer, TasteResults)
            for tried, score in zip(soups, answer.scores, strict=True):
                best = replace(tried, score=score) if score > best.score else best
            losses = [-score for score in answer.scores]
            search.tell(list(zip(points, losses, strict=True)))
            num_tastes += search.population_size
        return best, num_tastes

    def _refusal(self, candidate: Ingredient, result: TasteResult, soup: "PartialSoup") -> Decision:
        after = result.score
        score = f"{after:.4f}" if after is not None else f"at most {result.at_most:.4f}"
        threshold = f"{self._threshold(soup.score):.4f}"
        reason = f"mixed in evenly it scores {score}, below {threshold}: no search"
        at_most = result.at_most if after is None else None
        return Decision(
            candidate=candidate.name,
            accepted=False,
            before=soup.score,
            after=after,
            at_most=at_most,
            reason=reason,
        )

    def _decision(
        self,
        candidate: Ingredient,
        soup: "PartialSoup",
        even: "PartialSoup",
        best: "PartialSoup",
        num_tastes: int,
    ) -> Decision:
        gain = best.score - soup.score
        if self.min_delta:
            # Rounded, because 0.1 + 0.2 is more than 0.3 in binary.
            gain = round(gain - self.min_delta, 12)
        accepted = gain > 0 or (gain == 0 and self.tie == "accept")
        own = best.weights[1:, -1] if len(best.weights) > 1 else best.weights[:, -1]
        reason = (
            f"evenly {even.score:.4f}, after {num_tastes} more tastes {best.score:.4f} with "
            f"shares of {own.min():.3f} to {own.max():.3f}; the soup without it {soup.score:.4f}"
        )
        return Decision(
            candidate=candidate.name,
            accepted=accepted,
            before=soup.score,
            after=best.score,
            reason=reason,
        )


@dataclass(frozen=True)
class PartialSoup:
    """The soup so far: (1 + groups, members) weights; the first row is for all other tensors."""

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    weights: np.ndarray
    score: float

    def with_(self, name: str, shares: np.ndarray | None = None) -> "PartialSoup":
        """The soup with one more member. Members so far keep `shares` of the groups; by default,
        and outside all groups, K / (K + 1)."""
        own_shares = np.full((len(self.weights), 1), len(self.names) / (len(self.names) + 1))
        if shares is not None:
            own_shares[-len(shares) :, 0] = shares
        weights = np.hstack([own_shares * self.weights, 1 - own_shares])
        return PartialSoup((*self.names, name), self.groups, weights, self.score)

    @property
    def mix(self) -> Mix:
        if len(self.names) == 1:
            return Mix.mean(self.names)
        prefixes = (EVERYTHING, *(prefix for group in self.groups for prefix in group))
        sizes = [1, *map(len, self.groups)]
        return mix_of(self.names, prefixes, np.repeat(self.weights, sizes, axis=0))


def grouped(components: tuple[str, ...], most: int) -> tuple[tuple[str, ...], ...]:
    """Groups of neighbours of nearly the same size, at most `most`."""
    if not components:
        return ()
    num = min(most, len(components))
    cuts = [len(components) * i // num for i in range(num + 1)]
    return tuple(components[low:high] for low, high in zip(cuts, cuts[1:], strict=False))
