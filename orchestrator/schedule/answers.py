"""Answers of the ledger to the question of a recipe, and what it still lacks.

Taste, FirstAtLeast         from tastes, whichever merge asked for them
GramMatrices, MixGradient   from measurements, which are too long to be written down a second time

It does not matter which driver, worker or attempt produced a result.
"""

from collections.abc import Iterator

from orchestrator.state.state import MergeState, State
from workers.types import (
    WORST,
    Answer,
    Answered,
    FirstAtLeast,
    FirstResult,
    GramMatrices,
    MergeOpened,
    Mix,
    MixGradient,
    Taste,
    TasteOrder,
    TasteResult,
    TasteResults,
    cohort_family,
)

TasteQuestion = Taste | FirstAtLeast
Measurement = GramMatrices | MixGradient


def answer_event(state: State, merge: MergeState) -> Answered | None:
    """The answer to the merge's open question, if all that it needs is known."""
    question, opened = merge.question, merge.opened
    if merge.soup is not None or question is None:
        return None
    if isinstance(question, Measurement):
        return Answered(merge=opened.merge) if is_measured(state, opened, question) else None
    answer = answer_to(question, state, opened)
    return None if answer is None else Answered(merge=opened.merge, answer=answer)


def is_measured(state: State, opened: MergeOpened, question: Measurement) -> bool:
    return (cohort_family(opened.cohort), question.key) in state.measured


def taste_result(
    state: State, opened: MergeOpened, mix: Mix, hits: bool = False
) -> TasteResult | None:
    """The ledger's result for a mix. A single ingredient has the score it was opened with; the base
    alone is tasted like any mix, because nothing has scored it."""
    if mix.single in opened.scores and not hits:
        score = opened.scores[mix.single]
        return TasteResult(score=score, at_most=score, samples=0)
    prefix = TasteOrder.prefix_of(opened.cohort, mix.key, opened.observe)
    if any(order.startswith(prefix) for order in state.gave_up):
        return TasteResult(score=None, at_most=WORST, samples=0)
    return state.tastes.get((opened.cohort, mix.key))


def answer_to(question: TasteQuestion, state: State, opened: MergeOpened) -> Answer | None:
    """The answer if everything it needs is known; speculative tastes beyond it are ignored."""
    if isinstance(question, FirstAtLeast):
        return _first(question, state, opened)
    tastings = [taste_result(state, opened, mix, question.hits) for mix in question.mixes]
    if not all(is_enough(tasting, question) for tasting in tastings):
        return None
    return TasteResults(
        scores=tuple(WORST if not t or t.score is None else t.score for t in tastings),
        hits=tuple(t.hits if t else None for t in tastings) if question.hits else (),
        nll=tuple(t.nll if t else None for t in tastings),
    )


def _first(question: FirstAtLeast, state: State, opened: MergeOpened) -> FirstResult | None:
    tried: list[TasteResult] = []
    for index, mix in enumerate(question.mixes):
        tasting = taste_result(state, opened, mix)
        if tasting is None or not is_enough(tasting, question):
            return None
        # Hits are no part of this answer, so that its bytes do not depend on earlier tastes.
        tried.append(tasting.model_copy(update={"hits": None}))
        if tasting.score is not None and question.is_met_by(tasting.score):
            return FirstResult(index=index, tried=tuple(tried))
    return FirstResult(index=None, tried=tuple(tried))


def is_enough(tasting: TasteResult | None, question: TasteQuestion) -> bool:
    """A complete score always is, but where hits are asked for; a bound only when it decides."""
    if tasting is None:
        return False
    if tasting.at_most == WORST:
        return True
    if tasting.score is not None:
        return isinstance(question, FirstAtLeast) or not question.hits or tasting.hits is not None
    return isinstance(question, FirstAtLeast) and not question.is_met_by(tasting.at_most)


def unknown(question: TasteQuestion, state: State, opened: MergeOpened) -> Iterator[Mix]:
    """Mixes still to be tasted, in order and each once; for `FirstAtLeast` none beyond the first
    that is known to reach the bar."""
    hits = isinstance(question, Taste) and question.hits
    for mix in {mix.key: mix for mix in question.mixes}.values():
        tasting = taste_result(state, opened, mix, hits)
        if not is_enough(tasting, question):
            yield mix
        elif _settles(tasting, question):
            return


def _settles(tasting: TasteResult | None, question: TasteQuestion) -> bool:
    if not isinstance(question, FirstAtLeast) or tasting is None or tasting.score is None:
        return False
    return question.is_met_by(tasting.score)
