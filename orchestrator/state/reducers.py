"""How each kind of event changes the state: one reducer per kind, no clock, no I/O."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from orchestrator.state import damage_reducers, merge_reducers
from orchestrator.state.checkpoint_reducers import (
    add_checkpoint,
    drop_checkpoints,
)
from orchestrator.state.state import OpenOrder, RunState, SlotUse, State, attempt_key
from workers.types import (
    Analysed,
    AnyEvent,
    BaseReady,
    Blended,
    Checkpointed,
    Compared,
    Evaluated,
    Extended,
    Failed,
    FilesEvent,
    Finished,
    FinishRequested,
    GaveUp,
    Interrupted,
    Measured,
    Opened,
    Ordered,
    Preflighted,
    PreflightOrder,
    Rejoined,
    Retired,
    RetryDecided,
    Revived,
    Scored,
    Served,
    Started,
    Stopped,
    Tasted,
    TasteResult,
    Trained,
)

Reducer = Callable[[State, Any], None]

MERGE_SLOT = "merge"
"""Names of the merge actor's slots begin so: no training slots, they hold no accelerator."""


def fold(events: Iterable[AnyEvent]) -> State:
    """The state of a whole ledger."""
    state = State()
    for event in events:
        apply(state, event)
    return state


def apply(state: State, event: AnyEvent) -> None:
    """Change the state by one event; one of a superseded attempt changes only what is newest."""
    if event.kind not in ("opened", "extended"):  # neither is of the earlier driver's time
        state.last_at = event.driver_time
    state.last_seq = max(state.last_seq, event.seq)
    if is_stale(state, event):
        return
    if event.order is not None and event.kind in CLOSING:
        _close(state, event)
    if isinstance(event, FilesEvent):
        damage_reducers.announced(state, event)
    REDUCERS[event.kind](state, event)


def is_stale(state: State, event: AnyEvent) -> bool:
    """From an attempt that is not the current one of its run or order."""
    if event.kind == "ordered" or event.order is None or event.attempt is None:
        return False
    return state.attempts.get(attempt_key(event.order, event.run)) != event.attempt


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


def _close(state: State, event: AnyEvent) -> None:
    """The order is no longer held by a fleet."""
    order = state.open.pop(event.order or "", None)
    if order is None or order.slot is None or order.started_at is None:
        return
    use = state.slot_use
    use.intervals.append((order.slot, event.order or "", order.started_at, event.driver_time))
    if not order.slot.startswith(MERGE_SLOT):
        use.busy_s += event.driver_time - order.started_at
        use.free_since[order.slot] = event.driver_time


def _opened(state: State, event: Opened) -> None:
    """A new driver: whatever was in flight will be ordered anew."""
    if state.began_at is None:
        state.began_at = event.driver_time
    if state.opened_at is not None and state.last_at is not None:
        state.earlier_s += max(0.0, state.last_at - state.opened_at)
    _forget_later_times(state, event.driver_time)
    if state.finished is not None:
        state.finish_reason = None
    state.opened_at = event.driver_time
    state.slots = event.slots
    state.open, state.backoff = {}, {}
    damage_reducers.opened(state)
    state.gave_up.pop(PreflightOrder.id_of(), None)  # of an extension that was refused
    state.training_since = None
    state.stopped, state.finished = None, None
    for order in state.failures.keys() - state.gave_up.keys():
        state.forgive(order)


def _forget_later_times(state: State, now: float) -> None:
    """The clock of an earlier driver may have been ahead of this one's."""
    for run in state.runs.values():
        if run.reached_at is not None:
            run.reached_at = min(run.reached_at, now)
    use = state.slot_use
    use.free_since = {slot: min(since, now) for slot, since in use.free_since.items()}


def _ordered(state: State, event: Ordered) -> None:
    assert event.order is not None and event.attempt is not None
    order = OpenOrder(event.what, event.attempt, event.run, event.due_since)
    state.open[event.order] = order
    state.attempts[attempt_key(event.order, event.run)] = event.attempt
    if event.run is not None and event.what == "train":
        state.segments.setdefault(event.run, set()).add(event.order)


def _started(state: State, event: Started) -> None:
    assert event.order is not None
    order = state.open.get(event.order)
    if order is None:
        return
    state.open[event.order] = replace(order, started_at=event.driver_time, slot=event.slot)
    state.has_started = True
    if event.run is not None and state.training_since is None:
        state.training_since = event.driver_time
    _count_waste(state.slot_use, order, event)


def _count_waste(use: SlotUse, order: OpenOrder, event: Started) -> None:
    """Seconds that the slot was free while this order was due."""
    slot = event.slot or ""
    if not slot.startswith(MERGE_SLOT):
        free_since = use.free_since.get(slot, order.due_since)
        use.wasted_s += max(0.0, event.driver_time - max(free_since, order.due_since))


def _preflighted(state: State, event: Preflighted) -> None:
    """A later preflight, of an extension, adds models."""
    facts, earlier = event.facts, state.preflight
    if earlier is not None:
        facts = earlier.model_copy(update={"models": {**facts.models, **earlier.models}})
    state.preflight = facts
    damage_reducers.splits_made(state)


def _base_ready(state: State, event: BaseReady) -> None:
    state.bases[event.checkpoint.name] = event.checkpoint
    damage_reducers.base_made(state, event.checkpoint.name)


def _run(state: State, run: str | None) -> RunState:
    """To be changed: the run's state, made at its first event."""
    assert run is not None
    return state.runs.setdefault(run, RunState())


def _evaluated(state: State, event: Evaluated) -> None:
    run = _run(state, event.run)
    run.curve[event.step] = event
    run.evaluated_to = max(run.evaluated_to, event.step)


def _checkpointed(state: State, event: Checkpointed) -> None:
    if event.write_s is not None:
        state.checkpoint_s = max(state.checkpoint_s or 0.0, event.write_s)
    owner = event.checkpoint.name.partition("/")[0]
    run = _run(state, owner)
    add_checkpoint(run, event)
    if event.checkpoint.step > run.farthest:
        run.farthest = event.checkpoint.step
        for order in state.segments.get(owner, ()):
            state.forgive(order)


def _trained(state: State, event: Trained) -> None:
    run = _run(state, event.run)
    run.trained_to, run.ended_early, run.reached_at = event.step, event.early, event.driver_time


def _rejoined(state: State, event: Rejoined) -> None:
    state.rejoined[event.run or ""] = event


def _interrupted(state: State, event: Interrupted) -> None:
    _run(state, event.run).interruptions += 1


def _measured(state: State, event: Measured) -> None:
    state.measured[event.cohort, event.key] = event


def _tasted(state: State, event: Tasted) -> None:
    key = (event.cohort, event.mix)
    earlier = state.tastes.get(key)
    samples = event.tasting.samples + (earlier.samples if earlier else 0)
    result = _tighter(earlier, event.tasting)
    state.tastes[key] = result.model_copy(update={"samples": samples})
    state.taste_cost[key] = state.taste_cost.get(key, 0.0) + event.busy_s


def _tighter(earlier: TasteResult | None, new: TasteResult) -> TasteResult:
    """A score is tighter than a bound, a low bound than a high one. Known hits are kept."""
    if earlier is None:
        return new
    if new.score is not None:
        return new.model_copy(update={"hits": new.hits or earlier.hits})
    return earlier if earlier.at_most <= new.at_most or earlier.score is not None else new


def _blended(state: State, event: Blended) -> None:
    state.soups[event.checkpoint.name] = event.checkpoint
    state.blend_seconds[event.checkpoint.name] = event.busy_s


def _scored(state: State, event: Scored) -> None:
    state.scores.setdefault(event.checkpoint, {}).update(event.scores)


def _compared(state: State, event: Compared) -> None:
    state.compared[event.key] = event


def _analysed(state: State, event: Analysed) -> None:
    state.analysed = event.key


def _served(state: State, event: Served) -> None:
    state.served = event


def _served_damaged(state: State, event: AnyEvent) -> None:
    state.served = None


def _retired(state: State, event: Retired) -> None:
    gone = frozenset(event.checkpoints)
    for owner in {checkpoint.partition("/")[0] for checkpoint in gone} & set(state.runs):
        drop_checkpoints(state.runs[owner], gone)
    state.soups = {name: soup for name, soup in state.soups.items() if soup.id not in gone}
    state.retired |= gone
    damage_reducers.retired(state, event)


def _failed(state: State, event: Failed) -> None:
    assert event.order is not None
    if event.checkpoint is not None:
        damage_reducers.drop_checkpoint(state, event.checkpoint)
    elif event.path is not None:
        damage_reducers.drop_file(state, event.path)
    state.unresolved_failures[event.order] = event
    state.failures[event.order] = (*state.failures.get(event.order, ()), event)


def _retry_decided(state: State, event: RetryDecided) -> None:
    assert event.order is not None
    state.unresolved_failures.pop(event.order, None)
    if event.micro_batch is not None:
        state.micro_batch[attempt_key(event.order, event.run)] = event.micro_batch
    state.backoff[event.order] = event


def _backoff_over(state: State, event: AnyEvent) -> None:
    state.backoff.pop(event.order or "", None)


def _gave_up(state: State, event: GaveUp) -> None:
    assert event.order is not None
    state.unresolved_failures.pop(event.order, None)
    state.gave_up[event.order] = event.reason
    if event.run:
        _run(state, event.run).failed = event.reason


def _revived(state: State, event: Revived) -> None:
    assert event.order is not None
    state.gave_up.pop(event.order, None)
    state.forgive(event.order)
    if event.run:
        _run(state, event.run).failed = None


def _finish_requested(state: State, event: FinishRequested) -> None:
    state.finish_reason = event.reason


def _extended(state: State, event: Extended) -> None:
    if state.original is None:
        state.original = event.before
    if event.runs:
        state.finish_reason = None


def _unchanged(state: State, event: AnyEvent) -> None:
    """There is nothing to do but to close its order, if it has one."""


def _stopped(state: State, event: Stopped) -> None:
    state.stopped = event


def _finished(state: State, event: Finished) -> None:
    state.finished = event


REDUCERS: dict[str, Reducer] = {
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
    "abandoned": merge_reducers.abandoned,
    "rejoined": _rejoined,
    "scored": _scored,
    "compared": _compared,
    "analysed": _analysed,
    "served": _served,
    "served_damaged": _served_damaged,
    "retired": _retired,
    "failed": _failed,
    "node_excluded": _unchanged,
    "damaged": damage_reducers.damaged,
    "retry_decided": _retry_decided,
    "backoff_over": _backoff_over,
    "gave_up": _gave_up,
    "revived": _revived,
    "finish_requested": _finish_requested,
    "extended": _extended,
    "cancelled": _unchanged,
    "stopped": _stopped,
    "finished": _finished,
}
