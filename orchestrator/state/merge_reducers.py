"""Reducers for merge events. Finished merges drop their long answers, so that memory stays flat."""

from orchestrator.state.state import MergeState, State
from workers.types import (
    Abandoned,
    Answer,
    Answered,
    Asked,
    Diversity,
    FirstAtLeast,
    FirstResult,
    GramMatrices,
    MergeOpened,
    Mixed,
    MixGradient,
    Question,
    RoundClosed,
    Taste,
    cohort_family,
)


def merge_opened(state: State, event: MergeOpened) -> None:
    merge = MergeState(event)
    state.merges[event.merge] = state.unmixed[event.merge] = merge
    if event.is_final:
        state.finals[event.merge] = merge
        _abandon_rounds(state)


def _abandon_rounds(state: State) -> None:
    """A final merge opens when training has ended. Old ledgers have no event for the rounds that
    were unfinished then, and their ingredients may be deleted."""
    for merge in [merge for merge in state.unmixed.values() if merge.opened.observe]:
        _abandon(state, merge, "training ended before it was over")


def abandoned(state: State, event: Abandoned) -> None:
    _abandon(state, state.merges[event.merge], event.reason)


def _abandon(state: State, merge: MergeState, reason: str) -> None:
    merge.abandoned = reason
    state.unmixed.pop(merge.opened.merge, None)
    if merge.measurement_keys:
        _drop_measurements(state, merge)


def asked(state: State, event: Asked) -> None:
    state.merges[event.merge].question = event.question


def answered(state: State, event: Answered) -> None:
    merge = state.merges[event.merge]
    question, answer = merge.question, event.answer
    merge.question = None
    if answer is None:
        assert isinstance(question, GramMatrices | MixGradient), "tastes are in the event itself"
        _answer_by_measurement(state, merge, question)
        return
    merge.answers = (*merge.answers, answer)
    merge.tasted_mixes = (*merge.tasted_mixes, *_tasted(question, answer))


def _answer_by_measurement(
    state: State, merge: MergeState, question: GramMatrices | MixGradient
) -> None:
    measured = state.measured[cohort_family(merge.opened.cohort), question.key]
    merge.answers = (*merge.answers, measured.answer)
    merge.measurement_keys = (*merge.measurement_keys, question.key)
    merge.num_measurements += 1
    merge.measured_samples += measured.samples
    merge.measured_s += measured.busy_s


def _tasted(question: Question | None, answer: Answer) -> tuple[str, ...]:
    """Keys of the mixes an answer is about: all, or for `FirstAtLeast` those up to the accepted."""
    mixes = question.mixes if isinstance(question, Taste | FirstAtLeast) else ()
    answered = mixes[: len(answer.tried)] if isinstance(answer, FirstResult) else mixes
    return tuple(mix.key for mix in answered)


def mixed(state: State, event: Mixed) -> None:
    merge = state.merges[event.merge]
    if not merge.opened.is_final:
        _drop_old_decisions(state, merge.opened.series)
    if merge.measurement_keys:
        _drop_measurements(state, merge)
    decisions = (*merge.opened.left_out, *event.soup.decisions)
    merge.soup = event.soup.model_copy(update={"decisions": decisions})
    merge.mixed_at = event.driver_time
    state.unmixed.pop(event.merge, None)


def round_closed(state: State, event: RoundClosed) -> None:
    state.merges[event.merge].closed = event


def diversity(state: State, event: Diversity) -> None:
    state.merges[event.merge].diversity = event


def _drop_measurements(state: State, merge: MergeState) -> None:
    """Measurements may be long. Another merge that asked for them has them among its answers."""
    family = cohort_family(merge.opened.cohort)
    for key in {(family, key) for key in merge.measurement_keys} - _awaited(state):
        state.measured.pop(key, None)
    merge.answers, merge.measurement_keys = (), ()


def _awaited(state: State) -> set[tuple[str, str]]:
    """Measurements that a merge has asked for and not yet received."""
    return {
        (cohort_family(merge.opened.cohort), merge.question.key)
        for merge in state.unmixed.values()
        if isinstance(merge.question, GramMatrices | MixGradient)
    }


def _drop_old_decisions(state: State, series: str) -> None:
    """Earlier rounds of the same cohort and fold keep only their soup.

    They were cleaned when the round before this one was mixed, so the first clean one is the end.
    """
    for merge in reversed(state.merges.values()):
        if merge.opened.is_final or merge.soup is None or merge.opened.series != series:
            continue
        if not merge.soup.decisions:
            return
        merge.answers, merge.tasted_mixes = (), ()
        merge.soup = merge.soup.model_copy(update={"decisions": ()})
