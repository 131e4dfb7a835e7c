"""What is happening now: each run, the soup so far, and what waits for what. Values, no layout."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from orchestrator import schedule
from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.report import format
from orchestrator.schedule import serving, sync_rounds, training
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
    return "running" if state.starts else "waiting"


def run_statuses(
    program: ExpandedExperiment, state: State, pulses: Iterable[Heartbeat] = ()
) -> list[RunStatus]:
    """The stages of bases that are being trained, then the runs, in configured order."""
    pulse_of = {pulse.run: pulse for pulse in pulses if pulse.run is not None}
    resolved = resolve(program, state.facts) if state.facts is not None else None
    specs = [*_stages(state, resolved), *program.runs]
    return [_run(program, state, resolved, spec, pulse_of.get(spec.id)) for spec in specs]


def _stages(state: State, resolved: ResolvedExperiment | None) -> list[RunSpec]:
    plans = resolved.plans if resolved is not None else ()
    return [stage for plan in plans if plan.final not in state.bases for stage in plan.stages]


def _run(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment | None,
    run: RunSpec,
    pulse: Heartbeat | None,
) -> RunStatus:
    known = state.run(run.id)
    status, note = _status(program, state, resolved, run)
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
        score=newest_score(known, program.experiment.soup.metric),
        images_per_s=rate,
        slot=_slot(state, run.id),
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


def _status(
    program: ExpandedExperiment, state: State, resolved: ResolvedExperiment | None, run: RunSpec
) -> tuple[str, str]:
    """In one word, and what there is to say beyond it."""
    if resolved is not None and training.is_trained(state, resolved, run):
        return "done", "ended early" if state.run(run.id).ended_early else ""
    reason = _failure(state, resolved, run)
    if reason is not None:
        return "failed", reason
    held = [order for order in state.open.values() if order.run == run.id]
    if any(order.started_at for order in held):
        return "running", ""
    pauses = [event.reason for event in state.backoff.values() if event.run == run.id]
    if pauses:
        return "retrying", pauses[-1]
    if held:
        return "queued", ""
    over = state.finish_reason is not None or state.stopped is not None
    if not over and resolved is not None and (number := _awaited_round(program, state, run)):
        return "waiting", f"for the others, round {number}"
    return ("stopped", state.finish_reason or "") if over else ("waiting", "")


def _awaited_round(program: ExpandedExperiment, state: State, run: RunSpec) -> int | None:
    """Number of the sync round that the run stands at and has not been cleared for."""
    if state.facts is None or run not in sync_rounds.at_boundary(program, state):
        return None
    resolved = resolve(program, state.facts)
    if sync_rounds.released_by(program, state, resolved, run) is not None:
        return None
    return sync_rounds.boundary_at(program, resolved, run, state.run(run.id).trained_to)


def _failure(state: State, resolved: ResolvedExperiment | None, run: RunSpec) -> str | None:
    if resolved is None or run.role != "member":
        return state.run(run.id).failed
    return training.failure(state, resolved, run)


@dataclass(frozen=True)
class SoupStatus:
    label: str
    score: float | None
    share: str
    """`4 of 6 ingredients`"""


def soup_statuses(program: ExpandedExperiment, state: State) -> list[SoupStatus]:
    """The final soups once there are any; before that the newest anytime soup of each cohort."""
    made = [each for each in state.merges.values() if each.soup is not None]
    finals = [each for each in made if each.opened.is_final]
    newest = {each.opened.cohort: each for each in made if not each.opened.is_final}
    shown = finals or list(newest.values())
    return [
        SoupStatus(
            label=(each.opened.label if finals else f"round {each.opened.round}")
            + of_cohort(program, state, each.opened.cohort),
            score=selection_shown(each.soup.score, program.experiment.soup.metric),
            share=format.share_of(each.soup.mix.names, len(each.opened.ingredients)),
        )
        for each in shown
        if each.soup is not None
    ]


def of_cohort(program: ExpandedExperiment, state: State, cohort: str) -> str:
    """` of test_vit`: whose soup it is, where there are several cohorts."""
    names = resolve(program, state.facts).cohort_names if state.facts is not None else {}
    return f" of {names[cohort_family(cohort)]}" if len(names) > 1 else ""


def selection_shown(score: float | None, metric: Metric) -> float | None:
    """A recipe maximises; a negative log-likelihood is shown with its own sign."""
    if score is None or score <= WORST:
        return None
    return -score if metric == "nll" else score


def pending_reasons(
    program: ExpandedExperiment, state: State, waiting_for: str | None = None
) -> Iterator[str]:
    """What waits, and for what, in sentences."""
    if waiting_for is not None:
        yield waiting_for
    if state.finish_reason is not None and state.finished is None:
        yield f"Training is over ({state.finish_reason}); what is committed is souped."
    yield from _beginnings(program, state)
    yield from _queued(program, state)
    for pause in state.backoff.values():
        yield f"{pause.run or pause.order} waits {pause.after_s:.0f} s: {pause.reason}."
    for merge in state.merges.values():
        if merge.question is not None and merge.soup is None and merge.opened.is_final:
            yield f"Recipe {merge.opened.label} waits for {_needed(merge.question)}."


def _needed(question: Question) -> str:
    if isinstance(question, GramMatrices):
        return f"the inner products of {len(question.names)} checkpoints"
    if isinstance(question, MixGradient):
        return f"a gradient, batch {question.batch} of epoch {question.epoch}"
    return f"tastes of up to {len(question.mixes)} mixes"


def _beginnings(program: ExpandedExperiment, state: State) -> Iterator[str]:
    refusal = serving.preflight_refusal(state)
    if state.facts is None:
        yield refusal or f"{len(program.runs)} runs wait for preflight, which looks at the data."
        return
    resolved = resolve(program, state.facts)
    for plan in resolved.plans:
        waiting = [run for run in program.runs if resolved.plan_of[run.id] is plan]
        if plan.final not in state.bases and not training.failure(state, resolved, waiting[0]):
            yield f"{len(waiting)} runs of {plan.model.name} wait for their base."


def _queued(program: ExpandedExperiment, state: State) -> Iterator[str]:
    if state.facts is None:
        return
    held = Counter(order.what for order in state.open.values() if order.started_at is None)
    due = Counter(order.kind for order in schedule.due(program, state) if order.kind != "retire")
    waiting = held + due
    if waiting:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(waiting.items()))
        slots = "the one slot" if state.slots == 1 else f"one of {state.slots} slots"
        yield f"Due, waiting for {slots} or the merge actor: {listed}."


def epochs_done(program: ExpandedExperiment, state: State) -> tuple[int, int]:
    """Run-epochs done, and in all; those that a run has failed or ended before never come."""
    done, total = 0, 0
    for run in program.runs:
        known = state.run(run.id)
        behind = _epochs_behind(known)
        done += behind
        is_over = known.failed is not None or known.ended_early
        total += behind if is_over else run.train.epochs
    return done, total


def seconds_left(program: ExpandedExperiment, state: State, at: float) -> float | None:
    """Estimate for the epochs of runs still to come, at the pace of this driver's life so far.

    None before the first epoch has ended.
    """
    if state.opened_at is None:
        return None
    curves = (state.run(run.id).curve.values() for run in program.runs)
    times = [point.time for curve in curves for point in curve if point.time >= state.opened_at]
    starts = [each.time for each in state.starts if each.run and each.time >= state.opened_at]
    if not times or not starts:
        return None
    done, total = epochs_done(program, state)
    pace_s = (max(times) - min(starts)) / len(times)
    return max(0.0, pace_s * (total - done) - (at - max(times)))
