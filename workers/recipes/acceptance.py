"""Acceptance: when a change of the soup is accepted. The rule of all stepwise recipes.

changes in order --FirstAtLeast, or Taste with hits--> the first that is good enough, and why those
                                                       before it are not
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from workers.errors import UserError
from workers.types import (
    WORST,
    Answer,
    Decision,
    FirstAtLeast,
    FirstResult,
    Mix,
    Question,
    Taste,
    TasteResult,
    TasteResults,
)

MAX_CANDIDATES = 64
"""Candidates per question, many more than any fleet tastes at once. A question names every member
of every mix, and a thousand candidates in one would fill the ledger."""

ROUNDING = 1e-12
"""Scores closer than this are equal."""


@dataclass(frozen=True)
class CurrentSoup:
    """The soup so far."""

    score: float
    best: float
    """The highest score of the soup so far."""
    hits: str | None = None
    """Which images the soup with score `best` gets right. None: unknown, or not compared."""


@dataclass(frozen=True)
class OfferResult:
    """The result of offering candidates in order."""

    index: int | None
    """Index of the accepted candidate. None: no candidate was accepted."""
    current: CurrentSoup
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Acceptance:
    """Options that stepwise recipes share. A recipe adds its own.

    `test: none` accepts a change if the selection score rises by `min_delta`; with the default 0
    the score never falls. `test: mcnemar` ignores chance differences: the exact McNemar test
    (two-sided, level `alpha`) compares the images that only one of two soups gets right. The other
    soup is the best so far, so small losses cannot add up unseen. Then `tie: accept` accepts what
    is not significantly worse, `strict` only what is significantly better. The test is of top-1,
    whatever soup.metric is; every taste is complete, one after the other.
    """

    tie: Literal["accept", "strict"] = "accept"
    """`accept` accepts an equal score (the paper's rule), `strict` asks for a higher one."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Least rise of the score."""
    test: Literal["none", "mcnemar"] = "none"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Level of the test."""
    patience: PositiveInt | None = None
    """Refusals in a row after which the rest is not offered. None: all are offered."""

    def __post_init__(self) -> None:
        if self.test != "none" and self.min_delta:
            raise UserError(
                f"min_delta is {self.min_delta:g} beside test: {self.test}, but a change is judged "
                "by one of the two; leave the other out"
            )

    def start(self, mix: Mix, score: float | None) -> Generator[Question, Answer, CurrentSoup]:
        """The first soup; asks for its score or hits only if they are unknown."""
        hits = self.test != "none"
        if score is not None and not hits:
            return CurrentSoup(score=score, best=score)
        answer = yield Taste(mixes=(mix,), hits=hits)
        assert isinstance(answer, TasteResults)
        score = answer.scores[0]
        return CurrentSoup(score=score, best=score, hits=answer.hits[0] if hits else None)

    def offer(
        self,
        names: Sequence[str],
        mix_of: Callable[[str], Mix],
        current: CurrentSoup,
        reference: str = "the soup without it",
    ) -> Generator[Question, Answer, OfferResult]:
        """Offer candidates in order until one is accepted.

        `mix_of` gives the soup changed by a candidate; `reference` names the unchanged soup in
        reasons. How many tastes run at once, and which are stopped early, cannot change the result.
        """
        offered = names[: self.patience]
        width = MAX_CANDIDATES if self.test == "none" else 1
        decisions: list[Decision] = []
        for low in range(0, len(offered), width):
            part = offered[low : low + width]
            results = yield from self._ask(tuple(mix_of(name) for name in part), current)
            for i, result in enumerate(results):
                accepted, reason = self._verdict(result, current, reference)
                decisions.append(_decision(part[i], accepted, result, current, reason))
                if accepted:
                    return OfferResult(low + i, _changed(current, result), tuple(decisions))
        decisions += [not_offered(name, len(offered)) for name in names[len(offered) :]]
        return OfferResult(None, current, tuple(decisions))

    def _ask(
        self, mixes: tuple[Mix, ...], current: CurrentSoup
    ) -> Generator[Question, Answer, tuple[TasteResult, ...]]:
        """Results in order, up to and including the first that is good enough."""
        if self.test == "none":
            at_least = self._threshold(current)
            first = yield FirstAtLeast(mixes=mixes, at_least=at_least, strict=self.tie == "strict")
            assert isinstance(first, FirstResult)
            return first.tried
        answer = yield Taste(mixes=mixes, hits=True)
        assert isinstance(answer, TasteResults)
        return tuple(
            TasteResult(
                score=None if score == WORST else score, at_most=score, samples=0, hits=hits
            )
            for score, hits in zip(answer.scores, answer.hits, strict=True)
        )

    def _threshold(self, current: CurrentSoup) -> float:
        if not self.min_delta:
            return current.score
        # Exactly so many images are a tie, whatever the last digits are: 0.1 + 0.2 is not 0.3, and
        # 19/60 + 0.05 is not 22/60 in binary.
        slack = ROUNDING if self.tie == "strict" else -ROUNDING
        return current.score + self.min_delta + slack

    def _verdict(
        self, result: TasteResult, current: CurrentSoup, reference: str
    ) -> tuple[bool, str]:
        """(whether the change is accepted, why)."""
        if result.at_most == WORST:
            return False, "its taste was given up, so its score is not known"
        if self.test == "none":
            return self._by_score(result, current.score, self._threshold(current), reference)
        return self._by_test(result, current)

    def _by_score(
        self, result: TasteResult, before: float, threshold: float, reference: str
    ) -> tuple[bool, str]:
        after, asks = result.score, "more than" if self.tie == "strict" else "at least"
        asked = f", and the rule asks for {asks} {threshold:.4f}" if self.min_delta else ""
        if after is None:
            bound = f"after {result.samples} images it could reach at most {result.at_most:.4f}"
            return False, f"{bound}, {reference} scores {before:.4f}{asked}"
        if after < before:
            return False, f"would lower the score from {before:.4f} to {after:.4f}"
        if after > before:
            accepted = after > threshold if self.tie == "strict" else after >= threshold
            return accepted, f"raises the score from {before:.4f} to {after:.4f}{asked}"
        if self.tie == "strict" or self.min_delta:
            return False, f"leaves the score at {before:.4f}, and the rule asks for a gain"
        return True, f"keeps the score at {before:.4f}, and the rule accepts ties"

    def _by_test(self, result: TasteResult, current: CurrentSoup) -> tuple[bool, str]:
        if result.hits is None or current.hits is None:
            return False, "which images one of the two soups gets right is not known"
        # Imported late: checking a configuration needs no scipy.
        from workers.scoring.metrics import mcnemar, unpack_hits

        gained, lost, p_value = mcnemar(unpack_hits(result.hits), unpack_hits(current.hits))
        is_clear = p_value < self.alpha
        counts = (
            f"gains {gained} images and loses {lost} against the best soup so far, "
            f"{current.best:.4f}: p = {p_value:.2g} by McNemar's test"
        )
        if self.tie == "strict":
            better = is_clear and gained > lost
            return better, f"{counts}, {'' if better else 'not '}significantly better"
        worse = is_clear and lost > gained
        return not worse, f"{counts}, {'' if worse else 'not '}significantly worse"


def not_offered(name: str, num_refused: int) -> Decision:
    """The decision on a candidate after patience is over."""
    times = "1 refusal" if num_refused == 1 else f"{num_refused} refusals in a row"
    return Decision(candidate=name, accepted=False, reason=f"not offered after {times}")


def _changed(current: CurrentSoup, result: TasteResult) -> CurrentSoup:
    """The soup after an accepted change."""
    assert result.score is not None, "an accepted mix was tasted completely"
    if result.score >= current.best:
        return CurrentSoup(score=result.score, best=result.score, hits=result.hits)
    return CurrentSoup(score=result.score, best=current.best, hits=current.hits)


def _decision(
    name: str, accepted: bool, result: TasteResult, current: CurrentSoup, reason: str
) -> Decision:
    stopped = result.score is None
    return Decision(
        candidate=name,
        accepted=accepted,
        before=current.score,
        after=result.score,
        at_most=result.at_most if stopped else None,
        reason=reason,
    )
