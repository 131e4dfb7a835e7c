"""What is happening now: each run, the soup so far, and what waits for what. Values, no layout."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from orchestrator import schedule
from orchestrator.report import format
from orchestrator.schedule import serving, sync_rounds
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import RunState, State
from workers.heartbeat import Heartbeat
from workers.types import WORST, GramMatrices, Metric, MixGradient, Question, RunSpec, cohort_family

Phase = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class RunStatus:
    """A run as a line of a table shows it."""

    id: str
    role: str
    params: str
    status: str
    """done, failed, running, stopped, waiting, queued or retrying"""
    epochs_done: int
    epochs: int
    loss: float | None
    score: float | None
    """Newest selection metric."""
    images_per_s: float | None
    slot: str | None
    note: str = ""


def phase(state: State) -> Phase:
    """Of the whole experiment, as far as its ledger tells."""
    if serving.preflight_refusal(state) is not None:
        return "failed"
    if state.finished is not None:
        return "finished" if state.served is not None and state.served.soup else "failed"
    if state.stopped is not None:
        return "stopped"
    return "running" if state.has_started else "waiting"


def run_statuses(moment: Moment, pulses: Iterable[Heartbeat] = ()) -> list[RunStatus]:
    """The stages of bases that are being trained, then the runs, in configured order."""
    pulse_of = {pulse.run: pulse for pulse in pulses if pulse.run is not None}
    runs = [*_stages(moment), *moment.expanded.runs]
    return [_run(moment, run, pulse_of.get(run.id)) for run in runs]


def _stages(moment: Moment) -> list[RunSpec]:
    plans, bases = moment.resolved.plans if moment.is_resolved else (), moment.state.bases
    return [stage for plan in plans if plan.final not in bases for stage in plan.stages]


def _run(
    moment: Moment,
    run: RunSpec,
    pulse: Heartbeat | None,
) -> RunStatus:
    known = moment.state.run(run.id)
    status, note = _status(moment, run)
    is_running = status == "running"
    newest = known.curve[max(known.curve)] if known.curve else None
    loss = newest.loss if newest is not None else None
    rate = newest.images_per_s if newest is not None and is_running else None
    if pulse is not None and is_running:
        loss = pulse.loss if pulse.loss is not None else loss
        rate = pulse.images_per_s if pulse.images_per_s is not None else rate
        note = f"silent for {pulse.silent_s:.0f} s" if pulse.silent_s > 15 else note
    return RunStatus(
        id=run.id,
        role=run.role,
        params=format.params(run.params),
        status=status,
        epochs_done=_epochs_behind(known),
        epochs=run.train.epochs,
        loss=loss,
        score=newest_score(known, moment.config.soup.metric),
        images_per_s=rate,
        slot=_slot(moment.state, run.id),
        note=note,
    )


def _epochs_behind(known: RunState) -> int:
    return known.curve[max(known.curve)].epoch if known.curve else 0


def newest_score(known: RunState, metric: Metric) -> float | None:
    if not known.curve:
        return None
    value: float | None = getattr(known.curve[max(known.curve)].score, metric)
    return value


def _slot(state: State, run: str) -> str | None:
    return next((o.slot for o in state.open.values() if o.run == run and o.started_at), None)


def _status(moment: Moment, run: RunSpec) -> tuple[str, str]:
    """In one word, and what there is to say beyond it."""
    if moment.is_resolved and moment.is_trained(run):
        return "done", "ended early" if moment.state.run(run.id).ended_early else ""
    reason = _failure(moment, run)
    if reason is not None:
        return "failed", reason
    held = [order for order in moment.state.open.values() if order.run == run.id]
    if any(order.started_at for order in held):
        return "running", ""
    pauses = [event.reason for event in moment.state.backoff.values() if event.run == run.id]
    if pauses:
        return "retrying", pauses[-1]
    if held:
        return "queued", ""
    over = moment.state.finish_reason is not None or moment.state.stopped is not None
    if not over and (number := _awaited_round(moment, run)):
        return "waiting", f"for the others, round {number}"
    return ("stopped", moment.state.finish_reason or "") if over else ("waiting", "")


def _awaited_round(moment: Moment, run: RunSpec) -> int | None:
    """Number of the sync round that the run stands at and has not been cleared for."""
    if not moment.is_resolved or run not in sync_rounds.at_boundary(moment):
        return None
    if sync_rounds.released_by(moment, run) is not None:
        return None
    return sync_rounds.boundary_at(moment.resolved, run, moment.run(run.id).trained_to)


def _failure(moment: Moment, run: RunSpec) -> str | None:
    if not moment.is_resolved or run.role != "member":
        return moment.run(run.id).failed
    return moment.failure_of(run)


@dataclass(frozen=True)
class SoupStatus:
    label: str
    score: float | None
    share: str
    """`4 of 6 ingredients`"""


def soup_statuses(moment: Moment) -> list[SoupStatus]:
    """The final soups once there are any; before that the newest anytime soup of each cohort."""
    made = [each for each in moment.state.merges.values() if each.soup is not None]
    finals = [each for each in made if each.opened.is_final]
    newest = {each.opened.cohort: each for each in made if not each.opened.is_final}
    shown = finals or list(newest.values())
    return [
        SoupStatus(
            label=(each.opened.label if finals else f"round {each.opened.round}")
            + of_cohort(moment, each.opened.cohort),
            score=selection_shown(each.soup.score, moment.config.soup.metric),
            share=format.share_of(each.soup.mix.names, len(each.opened.ingredients)),
        )
        for each in shown
        if each.soup is not None
    ]


def of_cohort(moment: Moment, cohort: str) -> str:
    """` of test_vit`: whose soup it is, where there are several cohorts."""
    names = moment.resolved.cohort_names if moment.is_resolved else {}
    return f" of {names[cohort_family(cohort)]}" if len(names) > 1 else ""


def selection_shown(score: float | None, metric: Metric) -> float | None:
    """A recipe maximises; a negative log-likelihood is shown with its own sign."""
    if score is None or score <= WORST:
        return None
    return -score if metric == "nll" else score


def pending_reasons(moment: Moment, waiting_for: str | None = None) -> Iterator[str]:
    """What waits, and for what, in sentences."""
    if waiting_for is not None:
        yield waiting_for
    if moment.state.finish_reason is not None and moment.state.finished is None:
        yield f"Training is over ({moment.state.finish_reason}); what is committed is souped."
    yield from _beginnings(moment)
    yield from _queued(moment)
    for pause in moment.state.backoff.values():
        yield f"{pause.run or pause.order} waits {pause.after_s:.0f} s: {pause.reason}."
    for merge in moment.state.merges.values():
        if merge.question is not None and merge.soup is None and merge.opened.is_final:
            yield f"Recipe {merge.opened.label} waits for {_needed(merge.question)}."


def _needed(question: Question) -> str:
    if isinstance(question, GramMatrices):
        return f"the inner products of {len(question.names)} checkpoints"
    if isinstance(question, MixGradient):
        return f"a gradient, batch {question.batch} of epoch {question.epoch}"
    return f"tastes of up to {len(question.mixes)} mixes"


def _beginnings(moment: Moment) -> Iterator[str]:
    refusal = serving.preflight_refusal(moment.state)
    if not moment.is_resolved:
        yield (
            refusal
            or f"{len(moment.expanded.runs)} runs wait for preflight, which looks at the data."
        )
        return
    resolved = moment.resolved
    for plan in resolved.plans:
        waiting = [run for run in moment.expanded.runs if resolved.plan_of[run.id] is plan]
        if plan.final not in moment.state.bases and not moment.failure_of(waiting[0]):
            yield f"{len(waiting)} runs of {plan.model.name} wait for their base."


def _queued(moment: Moment) -> Iterator[str]:
    if not moment.is_resolved:
        return
    held = Counter(order.what for order in moment.state.open.values() if order.started_at is None)
    due = Counter(order.kind for order in schedule.due(moment) if order.kind != "retire")
    waiting = held + due
    if waiting:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(waiting.items()))
        slots = "the one slot" if moment.state.slots == 1 else f"one of {moment.state.slots} slots"
        yield f"Due, waiting for {slots} or the merge actor: {listed}."


def epochs_done(moment: Moment) -> tuple[int, int]:
    """Run-epochs done, and in all; those that a run has failed or ended before never come."""
    done, total = 0, 0
    for run in moment.expanded.runs:
        known = moment.state.run(run.id)
        behind = _epochs_behind(known)
        done += behind
        is_over = known.failed is not None or known.ended_early
        total += behind if is_over else run.train.epochs
    return done, total


def seconds_left(moment: Moment, at: float) -> float | None:
    """Estimate for the epochs of runs still to come, at the pace of this driver's life so far.

    None before the first epoch has ended.
    """
    if moment.state.opened_at is None:
        return None
    curves = (moment.state.run(run.id).curve.values() for run in moment.expanded.runs)
    times = [
        point.time for curve in curves for point in curve if point.time >= moment.state.opened_at
    ]
    began = moment.state.training_since
    if not times or began is None:
        return None
    done, total = epochs_done(moment)
    pace_s = (max(times) - began) / len(times)
    return max(0.0, pace_s * (total - done) - (at - max(times)))
