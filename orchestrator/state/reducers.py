"""How each kind of event changes the state: one pure function per kind, no clock, no I/O."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from orchestrator.state import merge_reducers
from orchestrator.state.checkpoint_reducers import add_checkpoint, drop_checkpoints, drop_corrupt
from orchestrator.state.state import OpenOrder, State
from workers.types import (
    Analysed,
    AnyEvent,
    BaseReady,
    Blended,
    Checkpointed,
    Compared,
    Evaluated,
    Failed,
    Finished,
    FinishRequested,
    GaveUp,
    Interrupted,
    Measured,
    Opened,
    Ordered,
    Preflighted,
    Rejoined,
    Retired,
    RetryDecided,
    Scored,
    Served,
    Started,
    Stopped,
    Tasted,
    TasteResult,
    Trained,
)

Fold = Callable[[State, Any], State]


def fold(events: Iterable[AnyEvent], state: State | None = None) -> State:
    state = state or State()
    for event in events:
        state = after(state, event)
    return state


def after(state: State, event: AnyEvent) -> State:
    """The state once `event` has happened; word of a superseded attempt changes nothing."""
    last_at = max(state.last_at or event.time, event.time)
    state = replace(state, last_seq=max(state.last_seq, event.seq), last_at=last_at)
    if is_stale(state, event):
        return state
    if event.order is not None and event.kind in CLOSING:
        state = _close(state, event)
    return FOLDS[event.kind](state, event)


def is_stale(state: State, event: AnyEvent) -> bool:
    """From a zombie: an attempt that is not the current one of its run or order."""
    if event.kind == "ordered" or event.order is None or event.attempt is None:
        return False
    return state.attempts.get(state.attempt_key(event.order, event.run)) != event.attempt


CLOSING = frozenset(
    [
        "preflighted",
        "base_ready",
        "trained",
        "interrupted",
        "asked",
        "mixed",
        "tasted",
        "measured",
        "blended",
        "diversity",
        "scored",
        "compared",
        "analysed",
        "served",
        "retired",
        "failed",
        "cancelled",
    ]
)
"""Events that end their order."""


def _close(state: State, event: AnyEvent) -> State:
    """The order is no longer held by a fleet."""
    order = state.open.get(event.order or "")
    if order is None:
        return state
    remaining = {key: value for key, value in state.open.items() if key != event.order}
    state = replace(state, open=remaining)
    if order.slot is None or order.started_at is None:
        return state
    interval = (order.slot, order.started_at, event.time)
    return replace(state, busy=(*state.busy, interval))


def _opened(state: State, event: Opened) -> State:
    """A new driver: whatever was in flight will be ordered anew."""
    return replace(
        state,
        began_at=state.began_at if state.began_at is not None else event.time,
        opened_at=event.time,
        slots=event.slots,
        open={},
        backoff={},
        finish_reason=None if state.finished is not None else state.finish_reason,
        stopped=None,
        finished=None,
    )


def _ordered(state: State, event: Ordered) -> State:
    assert event.order is not None and event.attempt is not None
    order = OpenOrder(event.what, event.attempt, event.run, event.time)
    key = state.attempt_key(event.order, event.run)
    return replace(
        state,
        open={**state.open, event.order: order},
        attempts={**state.attempts, key: event.attempt},
        due_since={**state.due_since, (event.order, event.attempt): event.due_since},
    )


def _started(state: State, event: Started) -> State:
    assert event.order is not None
    order = state.open.get(event.order)
    if order is None:
        return state
    begun = replace(order, started_at=event.time, slot=event.slot)
    return replace(state, open={**state.open, event.order: begun}, starts=(*state.starts, event))


def _preflighted(state: State, event: Preflighted) -> State:
    return replace(state, facts=event.facts)


def _base_ready(state: State, event: BaseReady) -> State:
    return replace(state, bases={**state.bases, event.checkpoint.name: event.checkpoint})


def _with_run(state: State, run: str | None, **changes: Any) -> State:
    assert run is not None
    return replace(state, runs={**state.runs, run: replace(state.run(run), **changes)})


def _evaluated(state: State, event: Evaluated) -> State:
    curve = {**state.run(event.run or "").curve, event.step: event}
    return _with_run(state, event.run, curve=curve)


def _checkpointed(state: State, event: Checkpointed) -> State:
    owner = event.checkpoint.name.partition("/")[0]
    return replace(state, runs={**state.runs, owner: add_checkpoint(state.run(owner), event)})


def _trained(state: State, event: Trained) -> State:
    known = {"trained_to": event.step, "ended_early": event.early, "reached_at": event.time}
    return _with_run(state, event.run, **known)


def _rejoined(state: State, event: Rejoined) -> State:
    return replace(state, rejoined={**state.rejoined, event.run or "": event})


def _interrupted(state: State, event: Interrupted) -> State:
    return _with_run(state, event.run, interruptions=state.run(event.run or "").interruptions + 1)


def _measured(state: State, event: Measured) -> State:
    return replace(state, measured={**state.measured, (event.cohort, event.key): event})


def _tasted(state: State, event: Tasted) -> State:
    key = (event.cohort, event.mix)
    known = state.tastes.get(key)
    samples = event.tasting.samples + (known.samples if known else 0)
    tasting = _tighter(known, event.tasting).model_copy(update={"samples": samples})
    seconds = state.taste_cost.get(key, 0.0) + event.busy_s
    return replace(
        state,
        tastes={**state.tastes, key: tasting},
        taste_cost={**state.taste_cost, key: seconds},
    )


def _tighter(known: TasteResult | None, new: TasteResult) -> TasteResult:
    """A score says more than a bound; of two bounds the lower one. Hits stay known."""
    if known is None:
        return new
    if new.score is not None:
        return new.model_copy(update={"hits": new.hits or known.hits})
    return known if known.at_most <= new.at_most or known.score is not None else new


def _blended(state: State, event: Blended) -> State:
    name = event.checkpoint.name
    return replace(
        state,
        soups={**state.soups, name: event.checkpoint},
        blend_seconds={**state.blend_seconds, name: event.busy_s},
    )


def _scored(state: State, event: Scored) -> State:
    scores = {**state.scores.get(event.checkpoint, {}), **event.scores}
    return replace(state, scores={**state.scores, event.checkpoint: scores})


def _compared(state: State, event: Compared) -> State:
    return replace(state, compared={**state.compared, event.key: event})


def _analysed(state: State, event: Analysed) -> State:
    return replace(state, analysed=event.key)


def _served(state: State, event: Served) -> State:
    return replace(state, served=event)


def _retired(state: State, event: Retired) -> State:
    gone = frozenset(event.checkpoints)
    owners = {checkpoint.partition("/")[0] for checkpoint in gone}
    fewer = {run: drop_checkpoints(state.run(run), gone) for run in owners if run in state.runs}
    soups = {name: place for name, place in state.soups.items() if place.id not in gone}
    runs = {**state.runs, **fewer}
    return replace(state, runs=runs, soups=soups, retired=state.retired | gone)


def _failed(state: State, event: Failed) -> State:
    assert event.order is not None
    if event.checkpoint is not None:
        runs = drop_corrupt(state.runs, event.checkpoint)
        # A soup of such bytes is as good as none: whoever needs it has it blended again.
        soups = {name: soup for name, soup in state.soups.items() if soup.id != event.checkpoint}
        corrupt = state.corrupt | {event.checkpoint}
        state = replace(state, runs=runs, soups=soups, corrupt=corrupt)
    earlier = state.failures.get(event.order, ())
    return replace(
        state,
        unresolved_failures={**state.unresolved_failures, event.order: event},
        failures={**state.failures, event.order: (*earlier, event)},
    )


def _decided(state: State, order: str) -> State:
    waiting = {key: value for key, value in state.unresolved_failures.items() if key != order}
    return replace(state, unresolved_failures=waiting)


def _retry_decided(state: State, event: RetryDecided) -> State:
    assert event.order is not None
    state = _decided(state, event.order)
    if event.micro_batch is not None:
        key = state.attempt_key(event.order, event.run)
        state = replace(state, micro_batch={**state.micro_batch, key: event.micro_batch})
    return replace(state, backoff={**state.backoff, event.order: event})


def _backoff_over(state: State, event: AnyEvent) -> State:
    left = {key: value for key, value in state.backoff.items() if key != event.order}
    return replace(state, backoff=left)


def _gave_up(state: State, event: GaveUp) -> State:
    assert event.order is not None
    state = _decided(state, event.order)
    state = replace(state, gave_up={**state.gave_up, event.order: event.reason})
    return _with_run(state, event.run, failed=event.reason) if event.run else state


def _finish_requested(state: State, event: FinishRequested) -> State:
    return replace(state, finish_reason=event.reason)


def _unchanged(state: State, event: AnyEvent) -> State:
    return state


def _stopped(state: State, event: Stopped) -> State:
    return replace(state, stopped=event)


def _finished(state: State, event: Finished) -> State:
    return replace(state, finished=event)


FOLDS: dict[str, Fold] = {
    "opened": _opened,
    "ordered": _ordered,
    "started": _started,
    "preflighted": _preflighted,
    "base_ready": _base_ready,
    "evaluated": _evaluated,
    "checkpoint": _checkpointed,
    "trained": _trained,
    "interrupted": _interrupted,
    "merge_opened": merge_reducers.merge_opened,
    "asked": merge_reducers.asked,
    "answered": merge_reducers.answered,
    "tasted": _tasted,
    "measured": _measured,
    "mixed": merge_reducers.mixed,
    "blended": _blended,
    "diversity": merge_reducers.diversity,
    "round_closed": merge_reducers.round_closed,
    "rejoined": _rejoined,
    "scored": _scored,
    "compared": _compared,
    "analysed": _analysed,
    "served": _served,
    "retired": _retired,
    "failed": _failed,
    "retry_decided": _retry_decided,
    "backoff_over": _backoff_over,
    "gave_up": _gave_up,
    "finish_requested": _finish_requested,
    "cancelled": _unchanged,
    "stopped": _stopped,
    "finished": _finished,
}
