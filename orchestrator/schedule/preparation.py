"""Preflight and bases: what must exist before any run can start."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.experiment.resolved import (
    BasePlan,
    Program,
    Resolved,
    distinct_models,
    resolve,
    stage_train,
)
from orchestrator.schedule.training import segment
from orchestrator.state.state import State
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec, period_steps
from workers.types import AnyOrder, BaseOrder, PreflightOrder, digest, model_key, sparse

JUDGED = (
    "unfreeze",
    "aa",
    "grad_checkpointing",
    "class_weights",
    "layer_decay",
    "model_ema_decay",
    "weights",
    "weights_ema",
)
"""Keys of train that only the model, timm or the classes can judge."""
ANY = {"layer_decay": 0.5, "model_ema_decay": 0.5}
"""Of these it matters only whether they are set: one value stands for all."""


def preflight(program: Program, state: State) -> Iterator[AnyOrder]:
    if state.facts is None:
        opts = sorted({run.train.opt for run in program.runs} | {program.experiment.train.opt})
        models = distinct_models(program.runs)
        trains = to_judge(program, models)
        yield PreflightOrder(
            models=tuple(models.values()), opts=tuple(opts), trains=trains, **_rounds(program)
        )


def _rounds(program: Program) -> dict[str, Any]:
    """What preflight needs to see that there will be a sync round."""
    every = program.experiment.merge.every
    if program.experiment.merge.mode != "sync" or isinstance(every, int):
        return {}
    trains = [run.train for run in program.runs]
    longest = max(trains, key=lambda t: t.epochs / (t.batch_size * t.grad_accum_steps))
    return {"round_steps": period_steps(every, 1), "longest": longest}


def to_judge(
    program: Program, models: Mapping[str, ModelSpec]
) -> tuple[tuple[str, TrainSpec], ...]:
    """Distinct (model key, section) with nothing set but what must be judged: a sweep of a thousand
    learning rates asks one thing. Sections without any such key are left out."""
    base, train = program.experiment.base, program.experiment.train
    asked = [(model_key(run.model), run.train) for run in program.runs]
    if base.probe_epochs or base.trunk_epochs:
        asked += [(key, stage_train(train, 1)) for key in models]
    found: dict[str, tuple[str, TrainSpec]] = {}
    for key, section in asked:
        judged = {
            name: ANY.get(name, value) for name in JUDGED if (value := getattr(section, name))
        }
        if judged:
            only = _only(judged)
            found.setdefault(digest([key, sparse(only)], 64), (key, only))
    return tuple(found.values())


def _only(judged: Mapping[str, Any]) -> TrainSpec:
    """Long enough for its own sections, so that it would pass validation again."""
    sections = judged.get("unfreeze", ())
    epochs = max([TrainSpec().epochs, *(section.epoch + 1 for section in sections)])
    return TrainSpec().model_copy(update={**judged, "epochs": epochs})


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
