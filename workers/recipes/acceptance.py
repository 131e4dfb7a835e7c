"""Acceptance: when a change of the soup is taken. The rule of all recipes that go step by step.

changes in order --First, or Taste with hits--> the first that is good enough, and why not the
                                                others before it
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
"""Candidates per question, many more than any fleet tastes at once: a question names every member
of every mix, and a thousand candidates in one would fill the ledger."""

ROUNDING = 1e-12
"""Scores closer than this are equal."""


@dataclass(frozen=True)
class CurrentSoup:
    """The soup so far."""

    score: float
    best: float
    """The highest score it had on its way here."""
    hits: str | None = None
    """Which images it got right with that score; known only where they are compared."""


@dataclass(frozen=True)
class OfferResult:
    """What came of offering candidates: the place of the one that was taken, if one was."""

    index: int | None
    held: CurrentSoup
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Acceptance:
    """Options that these recipes share. A recipe adds its own.

    By score (`test: none`) a change is taken when the selection score rises by `min_delta`; with
    the default 0 the score never falls. By `test: mcnemar` chance differences do not count: the
    images that only one of two soups gets right are put to the exact McNemar test (two-sided,
    level `alpha`), against the best soup on the way, so that small losses cannot add up unseen.
    Then `tie: accept` takes what is not significantly worse, `strict` only what is significantly
    better. The test looks at top-1, whatever soup.metric is; every taste is a complete one, and
    one follows the other.
    """

    tie: Literal["accept", "strict"] = "accept"
    """`accept` takes an equal score (the paper's rule), `strict` asks for a higher one."""
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """By how much the score must rise."""
    test: Literal["none", "mcnemar"] = "none"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Level of the test."""
    patience: PositiveInt | None = None
    """After so many refusals in a row the rest is not offered; None offers everybody."""

    def __post_init__(self) -> None:
        if self.test != "none" and self.min_delta:
            raise UserError(
                f"min_delta is {self.min_delta:g} beside test: {self.test}, but a change is judged "
                "by one of the two; leave the other out"
            )

    def start(self, mix: Mix, score: float | None) -> Generator[Question, Answer, CurrentSoup]:
        """The first soup; asks only for what is not known of it."""
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
        held: CurrentSoup,
        reference: str = "the soup without it",
    ) -> Generator[Question, Answer, OfferResult]:
        """Offer candidates in order until one is taken.

        `mix_of` gives the soup that a candidate makes of the one held; `reference` names that one
        in reasons. How many tastes run at once, and which are stopped early, cannot change the
        result.
        """
        heard = names[: self.patience]
        width = MAX_CANDIDATES if self.test == "none" else 1
        decisions: list[Decision] = []
        for low in range(0, len(heard), width):
            part = heard[low : low + width]
            tried = yield from self._ask(tuple(mix_of(name) for name in part), held)
            for i, tasting in enumerate(tried):
                accepted, reason = self._verdict(tasting, held, reference)
                decisions.append(_decided(part[i], accepted, tasting, held, reason))
                if accepted:
                    return OfferResult(low + i, _moved(held, tasting), tuple(decisions))
        decisions += [not_offered(name, len(heard)) for name in names[len(heard) :]]
        return OfferResult(None, held, tuple(decisions))

    def _ask(
        self, mixes: tuple[Mix, ...], held: CurrentSoup
    ) -> Generator[Question, Answer, tuple[TasteResult, ...]]:
        """Tastings in order, up to and including the first that is good enough."""
        if self.test == "none":
            bar = self._threshold(held)
            found = yield FirstAtLeast(mixes=mixes, at_least=bar, strict=self.tie == "strict")
            assert isinstance(found, FirstResult)
            return found.tried
        answer = yield Taste(mixes=mixes, hits=True)
        assert isinstance(answer, TasteResults)
        return tuple(
            TasteResult(
                score=None if score == WORST else score, at_most=score, samples=0, hits=hits
            )
            for score, hits in zip(answer.scores, answer.hits, strict=True)
        )

    def _threshold(self, held: CurrentSoup) -> float:
        if not self.min_delta:
            return held.score
        # 0.1 + 0.2 is no more than the 0.3 that 30 images of 100 score, nor is 19/60 + 0.05 more
        # than 22/60: so many images exactly are a tie, whatever the last digits say.
        slack = ROUNDING if self.tie == "strict" else -ROUNDING
        return held.score + self.min_delta + slack

    def _verdict(self, tasting: TasteResult, held: CurrentSoup, reference: str) -> tuple[bool, str]:
        if tasting.at_most == WORST:
            return False, "its taste was given up, so its score is not known"
        if self.test == "none":
            return self._by_score(tasting, held.score, self._threshold(held), reference)
        return self._by_test(tasting, held)

    def _by_score(
        self, tasting: TasteResult, before: float, bar: float, reference: str
    ) -> tuple[bool, str]:
        after, asks = tasting.score, "more than" if self.tie == "strict" else "at least"
        asked = f", and the rule asks for {asks} {bar:.4f}" if self.min_delta else ""
        if after is None:
            seen = f"after {tasting.samples} images it could reach at most {tasting.at_most:.4f}"
            return False, f"{seen}, {reference} scores {before:.4f}{asked}"
        if after < before:
            return False, f"would lower the score from {before:.4f} to {after:.4f}"
        if after > before:
            taken = after > bar if self.tie == "strict" else after >= bar
            return taken, f"raises the score from {before:.4f} to {after:.4f}{asked}"
        if self.tie == "strict" or self.min_delta:
            return False, f"leaves the score at {before:.4f}, and the rule asks for a gain"
        return True, f"keeps the score at {before:.4f}, and the rule accepts ties"

    def _by_test(self, tasting: TasteResult, held: CurrentSoup) -> tuple[bool, str]:
        if tasting.hits is None or held.hits is None:
            return False, "which images one of the two soups gets right is not known"
        # Imported late: checking a configuration needs no scipy.
        from workers.scoring.metrics import mcnemar, unpack_hits

        gained, lost, p_value = mcnemar(unpack_hits(tasting.hits), unpack_hits(held.hits))
        clear = p_value < self.alpha
        seen = (
            f"gains {gained} images and loses {lost} against the best soup so far, "
            f"{held.best:.4f}: p = {p_value:.2g} by McNemar's test"
        )
        if self.tie == "strict":
            better = clear and gained > lost
            return better, f"{seen}, {'' if better else 'not '}significantly better"
        worse = clear and lost > gained
        return not worse, f"{seen}, {'' if worse else 'not '}significantly worse"


def not_offered(name: str, num_refused: int) -> Decision:
    """Patience is over."""
    times = "1 refusal" if num_refused == 1 else f"{num_refused} refusals in a row"
    return Decision(candidate=name, accepted=False, reason=f"not offered after {times}")


def _moved(held: CurrentSoup, tasting: TasteResult) -> CurrentSoup:
    """A change was taken."""
    assert tasting.score is not None, "an accepted mix was tasted completely"
    if tasting.score >= held.best:
        return CurrentSoup(score=tasting.score, best=tasting.score, hits=tasting.hits)
    return CurrentSoup(score=tasting.score, best=held.best, hits=held.hits)


def _decided(
    name: str, accepted: bool, tasting: TasteResult, held: CurrentSoup, reason: str
) -> Decision:
    stopped = tasting.score is None
    return Decision(
        candidate=name,
        accepted=accepted,
        before=held.score,
        after=tasting.score,
        at_most=tasting.at_most if stopped else None,
        reason=reason,
    )
