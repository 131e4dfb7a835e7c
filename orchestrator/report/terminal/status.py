"""Current status: runs, soups, and what waits for what. Values, no layout."""

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
    """A row of the table of runs."""

    id: str
    role: str
    params: str
    status: str
    """`done`, `failed`, `running`, `stopped`, `waiting`, `queued` or `retrying`."""
    epochs_done: int
    epochs: int
    loss: float | None
    score: float | None
    """Newest selection score."""
    images_per_s: float | None
    slot: str | None
    note: str = ""


def phase(state: State) -> Phase:
    """Phase of the experiment according to its ledger."""
    if serving.preflight_refusal(state) is not None:
        return "failed"
    if state.finished is not None:
        return "finished" if state.served is not None and state.served.soup else "failed"
    if state.stopped is not None:
        return "stopped"
    return "running" if state.has_started else "waiting"


def run_statuses(moment: Moment, heartbeats: Iterable[Heartbeat] = ()) -> list[RunStatus]:
    """Stages of the bases in training, then the runs, in configured order."""
    heartbeat_of = {
        heartbeat.run: heartbeat for heartbeat in heartbeats if heartbeat.run is not None
    }
    runs = [*_stages(moment), *moment.expanded.runs]
    return [_run(moment, run, heartbeat_of.get(run.id)) for run in runs]


def _stages(moment: Moment) -> list[RunSpec]:
    plans, bases = moment.resolved.plans if moment.is_resolved else (), moment.state.bases
    return [stage for plan in plans if plan.final not in bases for stage in plan.stages]


SILENT_S = 15.0
"""Silence that is worth a note."""


def _silence(heartbeat: Heartbeat) -> str:
    return f"{heartbeat.busy or 'no heartbeat'} for {heartbeat.silent_s:.0f} s"


def _run(
    moment: Moment,
    run: RunSpec,
    heartbeat: Heartbeat | None,
) -> RunStatus:
    run_state = moment.state.run(run.id)
    status, note = _status(moment, run)
    is_running = status == "running"
    newest = run_state.curve[max(run_state.curve)] if run_state.curve else None
    loss = newest.loss if newest is not None else None
    rate = newest.images_per_s if newest is not None and is_running else None
    if heartbeat is not None and is_running:
        loss = heartbeat.loss if heartbeat.loss is not None else loss
        rate = heartbeat.images_per_s if heartbeat.images_per_s is not None else rate
        note = _silence(heartbeat) if heartbeat.silent_s > SILENT_S else note
    return RunStatus(
        id=run.id,
        role=run.role,
        params=format.params(run.params),
        status=status,
        epochs_done=_epochs_done(run_state),
        epochs=run.train.epochs,
        loss=loss,
        score=newest_score(run_state, moment.config.soup.metric),
        images_per_s=rate,
        slot=_slot(moment.state, run.id),
        note=note,
    )


def _epochs_done(run_state: RunState) -> int:
    return run_state.curve[max(run_state.curve)].epoch if run_state.curve else 0


def newest_score(run_state: RunState, metric: Metric) -> float | None:
    if not run_state.curve:
        return None
    value: float | None = getattr(run_state.curve[max(run_state.curve)].score, metric)
    return value


def _slot(state: State, run: str) -> str | None:
    orders = state.open.values()
    return next((order.slot for order in orders if order.run == run and order.started_at), None)


def _status(moment: Moment, run: RunSpec) -> tuple[str, str]:
    """(status, note)"""
    if moment.is_resolved and moment.is_trained(run):
        return "done", "ended early" if moment.state.run(run.id).ended_early else ""
    reason = _failure(moment, run)
    if reason is not None:
        return "failed", reason
    orders = [order for order in moment.state.open.values() if order.run == run.id]
    if any(order.started_at for order in orders):
        return "running", ""
    pauses = [event.reason for event in moment.state.backoff.values() if event.run == run.id]
    if pauses:
        return "retrying", pauses[-1]
    if orders:
        return "queued", ""
    over = moment.state.finish_reason is not None or moment.state.stopped is not None
    if not over and (number := _awaited_round(moment, run)):
        return "waiting", f"for the other runs, round {number}"
    return ("stopped", moment.state.finish_reason or "") if over else ("waiting", "")


def _awaited_round(moment: Moment, run: RunSpec) -> int | None:
    """Number of the sync round that the run waits for."""
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
    """E.g. `4 of 6 ingredients`."""


def soup_statuses(moment: Moment) -> list[SoupStatus]:
    """The final soups. Before there are any: the newest anytime soup of each cohort."""
    merges = [merge for merge in moment.state.merges.values() if merge.soup is not None]
    finals = [merge for merge in merges if merge.opened.is_final]
    newest = {merge.opened.cohort: merge for merge in merges if not merge.opened.is_final}
    shown = finals or list(newest.values())
    return [
        SoupStatus(
            label=(merge.opened.label if finals else f"round {merge.opened.round}")
            + of_cohort(moment, merge.opened.cohort),
            score=selection_shown(merge.soup.score, moment.config.soup.metric),
            share=format.share_of(merge.soup.mix.names, len(merge.opened.ingredients)),
        )
        for merge in shown
        if merge.soup is not None
    ]


def of_cohort(moment: Moment, cohort: str) -> str:
    """` of test_vit`. Empty: there is only one cohort."""
    names = moment.resolved.cohort_names if moment.is_resolved else {}
    return f" of {names[cohort_family(cohort)]}" if len(names) > 1 else ""


def selection_shown(score: float | None, metric: Metric) -> float | None:
    """A selection score, which recipes maximise, with the sign of its metric."""
    if score is None or score <= WORST:
        return None
    return -score if metric == "nll" else score


def pending_reasons(moment: Moment, waiting_for: str | None = None) -> Iterator[str]:
    """Sentences that say what waits, and for what."""
    if waiting_for is not None:
        yield waiting_for
    if moment.state.finish_reason is not None and moment.state.finished is None:
        reason = moment.state.finish_reason
        yield f"Training has ended ({reason}); making soups from committed checkpoints."
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
    return f"the scores of up to {len(question.mixes)} mixes"


def _beginnings(moment: Moment) -> Iterator[str]:
    refusal = serving.preflight_refusal(moment.state)
    if not moment.is_resolved:
        num_runs = len(moment.expanded.runs)
        yield refusal or f"{num_runs} runs wait for preflight, which checks the data."
        return
    resolved = moment.resolved
    for plan in resolved.plans:
        waiting = [run for run in moment.expanded.runs if resolved.plan_of[run.id] is plan]
        if plan.final not in moment.state.bases and not moment.failure_of(waiting[0]):
            yield f"{len(waiting)} runs of {plan.model.name} wait for their base."


def _queued(moment: Moment) -> Iterator[str]:
    if not moment.is_resolved:
        return
    queued = Counter(order.what for order in moment.state.open.values() if order.started_at is None)
    due = Counter(order.kind for order in schedule.due(moment) if order.kind != "retire")
    waiting = queued + due
    if waiting:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(waiting.items()))
        slots = "the one slot" if moment.state.slots == 1 else f"one of {moment.state.slots} slots"
        yield f"Due, waiting for {slots} or the merge actor: {listed}."


def epochs_done(moment: Moment) -> tuple[int, int]:
    """(done, total) epochs of all runs; a run that failed or ended early needs no more."""
    done, total = 0, 0
    for run in moment.expanded.runs:
        run_state = moment.state.run(run.id)
        run_done = _epochs_done(run_state)
        done += run_done
        is_over = run_state.failed is not None or run_state.ended_early
        total += run_done if is_over else run.train.epochs
    return done, total


def seconds_left(moment: Moment, at: float) -> float | None:
    """Estimated time of the remaining epochs, at the pace since this driver started.

    None: no epoch has ended yet.
    """
    opened_at, began = moment.state.opened_at, moment.state.training_since
    if opened_at is None or began is None:
        return None
    curves = (moment.run(run.id).curve.values() for run in moment.expanded.runs)
    times = [
        point.driver_time for curve in curves for point in curve if point.driver_time >= opened_at
    ]
    if not times:
        return None
    done, total = epochs_done(moment)
    pace_s = (max(times) - began) / len(times)
    return max(0.0, pace_s * (total - done) - (at - max(times)))
