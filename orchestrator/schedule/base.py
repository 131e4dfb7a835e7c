"""Preflight and bases: what must exist before any run can start."""

from collections.abc import Iterator

from orchestrator.program import BasePlan, Program, Resolved, distinct_models, resolve
from orchestrator.schedule.train import segment
from orchestrator.state import State
from workers.types import AnyOrder, BaseOrder, PreflightOrder


def preflight(program: Program, state: State) -> Iterator[AnyOrder]:
    if state.facts is None:
        opts = sorted({run.train.opt for run in program.runs} | {program.experiment.train.opt})
        models = tuple(distinct_models(program.runs).values())
        yield PreflightOrder(models=models, opts=tuple(opts))


def bases(program: Program, state: State) -> Iterator[AnyOrder]:
    if state.facts is None or state.finish_reason is not None:
        return
    resolved = resolve(program, state.facts)
    for plan in resolved.plans:
        if plan.final not in state.bases:
            yield from _next_stage(state, resolved, plan)


def _next_stage(state: State, resolved: Resolved, plan: BasePlan) -> Iterator[AnyOrder]:
    """Fresh weights, then each stage from where the one before ended, then the final base."""
    if plan.fresh not in state.bases:
        yield BaseOrder(name=plan.fresh, model=plan.model)
        return
    start = state.bases[plan.fresh]
    for stage in plan.stages:
        if state.run(stage.id).failed is not None:
            return
        order = segment(state, resolved, stage, start)
        if order is not None:
            yield order
            return
        last = state.run(stage.id).last
        assert last is not None, f"stage {stage.id} ended without a checkpoint"
        start = last
    yield BaseOrder(name=plan.final, model=plan.model, source=start)
