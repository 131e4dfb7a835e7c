"""Training: every run that can go on should be going on, from its newest checkpoint."""

from collections.abc import Iterator

from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.state.remember import remembered
from orchestrator.state.state import State
from workers.types import AnyOrder, Checkpoint, Rejoin, RunSpec, TrainOrder


def runs(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """Sync runs go from boundary to boundary: they have a rule of their own."""
    if state.facts is None or state.finish_reason is not None:
        return
    if program.experiment.merge.mode == "sync":
        return
    resolved = resolve(program, state.facts)
    for run in unfinished(program, state):
        base = state.bases.get(resolved.plan_of[run.id].final)
        if base is None:
            continue
        order = segment(state, resolved, run, base)
        if order is not None:
            yield order


def segment(
    state: State,
    resolved: ResolvedExperiment,
    run: RunSpec,
    start: Checkpoint,
    stop_step: int | None = None,
    rejoin: Rejoin | None = None,
) -> TrainOrder | None:
    """The rest of the run, or what is left of it up to `stop_step`, from its newest checkpoint;
    with `rejoin` from `start`. None when it is trained, or given up."""
    known = state.run(run.id)
    stop_step = stop_step or resolved.num_steps[run.id]
    if known.failed is not None or known.ended_early or known.trained_to >= stop_step:
        return None
    start = start if rejoin is not None else known.last or start
    order = resolved.orders.get(f"train {run.id}")
    if (
        not isinstance(order, TrainOrder)
        or (order.start is not start or order.stop_step != stop_step)
        or order.rejoin != rejoin
    ):
        order = TrainOrder(run=run, start=start, stop_step=stop_step, rejoin=rejoin)
        resolved.orders[f"train {run.id}"] = order
    micro_batch = state.micro_batch.get(run.id)
    return order.model_copy(update={"micro_batch": micro_batch}) if micro_batch else order


def failure(state: State, resolved: ResolvedExperiment, run: RunSpec) -> str | None:
    """Why nothing (more) will come of this run: given up itself, or its base was."""
    known = state.run(run.id)
    if known.failed is not None:
        return known.failed
    if not state.gave_up:
        return None
    plan = resolved.plan_of[run.id]
    for stage in plan.stages:
        reason = state.run(stage.id).failed
        if reason is not None:
            return f"its base failed in the {stage.role}: {reason}"
    for base in (plan.fresh, plan.final):
        reason = state.gave_up.get(f"base-{base.removeprefix('base/')}")
        if reason is not None:
            return f"its base failed: {reason}"
    return None


def is_trained(state: State, resolved: ResolvedExperiment, run: RunSpec) -> bool:
    """At its last step, or at the one where its patience was over."""
    known = state.run(run.id)
    return known.ended_early or known.trained_to >= resolved.num_steps[run.id]


@remembered(by=lambda state: (state.open, state.backoff, state.unresolved_failures))
def in_flight(state: State) -> frozenset[str]:
    """Ids of the runs that a fleet holds or that wait for another try."""
    held = [order.run for order in state.open.values()]
    waiting = [
        event.run for event in (*state.backoff.values(), *state.unresolved_failures.values())
    ]
    return frozenset(run for run in (*held, *waiting) if run is not None)


def standing(program: ExpandedExperiment, state: State) -> tuple[object, ...]:
    """All that the ends of runs depend on."""
    return program, state.facts, state.runs, state.gave_up, state.finish_reason


@remembered(by=standing)
def unfinished(program: ExpandedExperiment, state: State) -> tuple[RunSpec, ...]:
    """Member runs that neither reached their last step nor failed."""
    if state.facts is None:
        return program.runs
    resolved = resolve(program, state.facts)
    return tuple(
        run
        for run in program.runs
        if not is_trained(state, resolved, run) and failure(state, resolved, run) is None
    )


@remembered(by=lambda program, state: (*standing(program, state), in_flight(state)))
def all_settled(program: ExpandedExperiment, state: State) -> bool:
    """Every member run has ended, one way or another, and none is in flight."""
    if state.facts is None:
        return False
    if state.finish_reason is None and unfinished(program, state):
        return False
    members = resolve(program, state.facts).plan_of
    return not any(run in members for run in in_flight(state))


def status(program: ExpandedExperiment, state: State, run: RunSpec) -> str:
    """done, failed, running, stopped or waiting."""
    resolved = resolve(program, state.facts) if state.facts is not None else None
    if resolved is not None and is_trained(state, resolved, run):
        return "done"
    if resolved is not None and failure(state, resolved, run) is not None:
        return "failed"
    if any(order.run == run.id and order.started_at for order in state.open.values()):
        return "running"
    return "stopped" if state.finish_reason is not None else "waiting"
