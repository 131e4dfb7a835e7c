"""An event as one sentence, for logs and pipes."""

from collections.abc import Callable
from typing import Any

from orchestrator.report import format
from orchestrator.report.terminal.status import of_cohort
from orchestrator.schedule.moment import Moment
from workers.types import (
    AnyEvent,
    Evaluated,
    MergeOpened,
    Mixed,
    Opened,
    Preflighted,
    Rejoined,
    RoundClosed,
    Served,
    ServedDamaged,
    Started,
    Trained,
)


def line(moment: Moment, event: AnyEvent) -> str | None:
    """The sentence of an event. None: not worth a line."""
    describe = LINES.get(event.kind)
    return describe(moment, event) if describe is not None else None


def _opened(moment: Moment, event: Opened) -> str:
    return f"driver {event.driver}, {event.fleet} fleet, {format.count_of(event.slots, 'slot')}"


def _preflighted(moment: Moment, event: Preflighted) -> str:
    counts = format.image_counts(event.facts)
    warned = "".join(f"; {warning}" for warning in event.facts.warnings)
    return f"preflight: {len(event.facts.classes)} classes, images: {counts}{warned}"


def _started(moment: Moment, event: Started) -> str | None:
    """Training only; other orders end within seconds."""
    if event.run is None:
        return None
    if moment.config.merge.mode == "sync" and moment.state.run(event.run).last is not None:
        return f"run {event.run} goes on from step {moment.state.run(event.run).trained_to}"
    again = f", attempt {event.attempt}" if event.attempt and event.attempt > 1 else ""
    params = [format.params(run.params) for run in moment.expanded.runs if run.id == event.run]
    return f"run {event.run} started on {event.slot}{again}{''.join(f': {p}' for p in params)}"


def _evaluated(moment: Moment, event: Evaluated) -> str:
    metric = moment.config.soup.metric
    scored = {"": event.score, "EMA ": event.ema, "held out ": event.held_out}
    scores = ", ".join(
        f"{what}{format.score_text(getattr(score, metric), metric)} {format.unit(metric)}"
        for what, score in scored.items()
        if score is not None
    )
    loss = format.UNKNOWN if event.loss is None else f"{event.loss:.4f}"
    when = _when(moment, event)
    return (
        f"run {event.run} {when}: val {format.METRIC_NAMES[metric]} {scores}, loss {loss}, "
        f"{event.images_per_s:.0f} images/s"
    )


def _when(moment: Moment, event: Evaluated) -> str:
    """The epoch; the step for a sync round within an epoch."""
    per_epoch = moment.resolved.steps_per_epoch if moment.is_resolved else {}
    within = event.step % per_epoch.get(event.run or "", 1)
    return f"step {event.step}" if within else f"epoch {event.epoch}"


def _trained(moment: Moment, event: Trained) -> str | None:
    """None at a sync round, where the run goes on."""
    if any(run.id == event.run and run.train.weights is not None for run in moment.expanded.runs):
        return f"run {event.run} is imported"
    if not event.early and _has_more(moment, event):
        return None
    early = "; ended early, out of patience" if event.early else ""
    return f"run {event.run} is trained, step {event.step}{early}"


def _has_more(moment: Moment, event: Trained) -> bool:
    steps = moment.resolved.num_steps if moment.is_resolved else {}
    return event.step < steps.get(event.run or "", 0)


def _merge_opened(moment: Moment, event: MergeOpened) -> str | None:
    if event.observe:
        return None
    whose = of_cohort(moment, event.cohort) + _of_fold(event)
    if event.is_sync:
        without = "".join(f"; without {run.candidate}: {run.reason}" for run in event.left_out)
        return f"round {event.round}{whose}: {len(event.ingredients)} members{without}"
    return (
        f"{event.label}{whose} starts with {format.count_of(len(event.ingredients), 'ingredient')}"
    )


def _of_fold(opened: MergeOpened) -> str:
    """The fold of a sync round; each fold has its own rounds."""
    fold = opened.merge.partition("-fold")[2].partition("-")[0] if opened.is_sync else ""
    return f", fold {fold}" if fold else ""


def _mixed(moment: Moment, event: Mixed) -> str:
    metric = moment.config.soup.metric
    opened = moment.state.merges[event.merge].opened
    label = f"soup {opened.label}"
    if not opened.is_final:
        label = f"round {opened.round}, " + ("soup so far" if opened.observe else opened.label)
    label += of_cohort(moment, opened.cohort) + _of_fold(opened)
    score = f"{format.selection_text(event.soup.score, metric)} {format.unit(metric)}"
    members = format.share_of(event.soup.mix.names, len(opened.ingredients))
    return f"{label}: val {format.METRIC_NAMES[metric]} {score}, {members}"


def _round_closed(moment: Moment, event: RoundClosed) -> str | None:
    """None if the round merged: `mixed` has a line already."""
    number = moment.state.merges[event.merge].opened.round
    return None if event.soup is not None else f"round {number}: {event.reason}"


def _rejoined(moment: Moment, event: Rejoined) -> str:
    number = moment.state.merges[event.merge].opened.round
    return f"run {event.run} was late at step {event.step}; it goes on from round {number}"


def _served(moment: Moment, event: Served) -> str:
    return f"serving {event.soup}" if event.soup else "nothing to serve: no soup could be made"


def _served_damaged(moment: Moment, event: ServedDamaged) -> str:
    return f"{event.reason}; the soup is served again"


LINES: dict[str, Callable[[Moment, Any], str | None]] = {
    "opened": _opened,
    "served_damaged": _served_damaged,
    "damaged": lambda moment, event: f"{event.reason}; it is made again",
    "preflighted": _preflighted,
    "base_ready": lambda moment, event: f"{event.checkpoint.name} is ready",
    "started": _started,
    "evaluated": _evaluated,
    "trained": _trained,
    "interrupted": lambda moment, event: f"run {event.run} was interrupted: {event.reason}",
    "failed": lambda moment, event: f"{_subject(event)} failed ({event.error}): {event.message}",
    "retry_decided": lambda moment, event: f"{_subject(event)}: {event.reason}",
    "node_excluded": lambda moment, event: (
        f"node {event.node[:12]} gets no slots for {event.for_s:.0f} s: {event.reason}"
    ),
    "gave_up": lambda moment, event: f"gave up on {_subject(event)}: {event.reason}",
    "revived": lambda moment, event: f"{_subject(event)} is tried again: {event.reason}",
    "merge_opened": _merge_opened,
    "mixed": _mixed,
    "round_closed": _round_closed,
    "rejoined": _rejoined,
    "served": _served,
    "finish_requested": lambda moment, event: f"training ends: {event.reason}",
    "stopped": lambda moment, event: f"stopped: {event.reason}",
}


def _subject(event: AnyEvent) -> str:
    return f"run {event.run}" if event.run else str(event.order)
