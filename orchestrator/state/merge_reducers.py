"""What merges are told: how the events of a merge change the state, and what is forgotten then."""

from dataclasses import replace
from typing import Any

from orchestrator.state.state import MergeState, State
from workers.types import (
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


def merge_opened(state: State, event: MergeOpened) -> State:
    return replace(state, merges={**state.merges, event.merge: MergeState(event)})


def _with_merge(state: State, merge: str, **changes: Any) -> State:
    changed = replace(state.merges[merge], **changes)
    return replace(state, merges={**state.merges, merge: changed})


def asked(state: State, event: Asked) -> State:
    return _with_merge(state, event.merge, question=event.question)


def answered(state: State, event: Answered) -> State:
    merge = state.merges[event.merge]
    question, answer = merge.question, event.answer
    if answer is None:
        assert isinstance(question, GramMatrices | MixGradient), (
            "only what is measured answers by itself"
        )
        return _answered_by_measuring(state, merge, question)
    return _with_merge(
        state,
        event.merge,
        question=None,
        answers=(*merge.answers, answer),
        tasted_mixes=(*merge.tasted_mixes, *_tried(question, answer)),
    )


def _answered_by_measuring(
    state: State, merge: MergeState, question: GramMatrices | MixGradient
) -> State:
    opened = merge.opened
    found = state.measured[cohort_family(opened.cohort), question.key]
    return _with_merge(
        state,
        opened.merge,
        question=None,
        answers=(*merge.answers, found.answer),
        measurement_keys=(*merge.measurement_keys, question.key),
        num_measurements=merge.num_measurements + 1,
        measured_samples=merge.measured_samples + found.samples,
        measured_s=merge.measured_s + found.busy_s,
    )


def _tried(question: Question | None, answer: Answer) -> tuple[str, ...]:
    """Keys of the mixes an answer is about: all, or for `FirstAtLeast` those up to the accepted."""
    mixes = question.mixes if isinstance(question, Taste | FirstAtLeast) else ()
    spoken_of = mixes[: len(answer.tried)] if isinstance(answer, FirstResult) else mixes
    return tuple(mix.key for mix in spoken_of)


def mixed(state: State, event: Mixed) -> State:
    merge = state.merges[event.merge]
    if not merge.opened.is_final:
        state = _without_old_reasons(state, event.merge)
    if merge.measurement_keys:
        state = _without_measurements(state, merge)
    decisions = (*merge.opened.left_out, *event.soup.decisions)
    soup = event.soup.model_copy(update={"decisions": decisions}) if decisions else event.soup
    return _with_merge(state, event.merge, soup=soup, mixed_at=event.time)


def round_closed(state: State, event: RoundClosed) -> State:
    return _with_merge(state, event.merge, closed=event)


def diversity(state: State, event: Diversity) -> State:
    return _with_merge(state, event.merge, diversity=event)


def _without_measurements(state: State, merge: MergeState) -> State:
    """What a finished merge was told may be long; whoever else asks has it among its answers."""
    family = cohort_family(merge.opened.cohort)
    gone = {(family, key) for key in merge.measurement_keys} - _awaited(state)
    left = {key: event for key, event in state.measured.items() if key not in gone}
    state = replace(state, measured=left)
    return _with_merge(state, merge.opened.merge, answers=(), measurement_keys=())


def _awaited(state: State) -> set[tuple[str, str]]:
    """Measurements that a merge has asked for and not yet been told."""
    return {
        (cohort_family(merge.opened.cohort), merge.question.key)
        for merge in state.merges.values()
        if isinstance(merge.question, GramMatrices | MixGradient)
    }


def _without_old_reasons(state: State, newest: str) -> State:
    """Of the rounds before the newest, of the same cohort and fold, only the soup is still asked
    for; memory stays flat."""
    series = newest.rpartition("-")[0]
    old = {
        name: replace(
            merge, answers=(), tasted_mixes=(), soup=merge.soup.model_copy(update={"decisions": ()})
        )
        for name, merge in state.merges.items()
        if not merge.opened.is_final
        and name.rpartition("-")[0] == series
        and merge.soup is not None
        and merge.soup.decisions
    }
    return replace(state, merges={**state.merges, **old})
