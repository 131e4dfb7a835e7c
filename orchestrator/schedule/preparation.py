"""Preflight and bases: what must exist before any run can start."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.experiment.resolved import (
    BasePlan,
    ExpandedExperiment,
    ResolvedExperiment,
    distinct_models,
    resolve,
    stage_train,
)
from orchestrator.schedule.training import segment
from orchestrator.state.state import State
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig, period_steps
from workers.types import (
    AnyOrder,
    BaseOrder,
    PreflightOrder,
    digest,
    dump_without_defaults,
    model_key,
)

CHECKED_KEYS = (
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
PLACEHOLDERS = {"layer_decay": 0.5, "model_ema_decay": 0.5}
"""Of these it matters only whether they are set: one value stands for all."""


def preflight(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    if state.facts is None:
        opts = sorted({run.train.opt for run in program.runs} | {program.experiment.train.opt})
        models = distinct_models(program.runs)
        trains = train_configs_to_check(program, models)
        yield PreflightOrder(
            models=tuple(models.values()),
            optimizers=tuple(opts),
            train_configs=trains,
            **_rounds(program),
        )


def _rounds(program: ExpandedExperiment) -> dict[str, Any]:
    """What preflight needs to see that there will be a sync round."""
    every = program.experiment.merge.every
    if program.experiment.merge.mode != "sync" or isinstance(every, int):
        return {}
    trains = [run.train for run in program.runs]
    longest = max(trains, key=lambda t: t.epochs / (t.batch_size * t.grad_accum_steps))
    return {"round_steps": period_steps(every, 1), "longest_train": longest}


def train_configs_to_check(
    program: ExpandedExperiment, models: Mapping[str, ModelConfig]
) -> tuple[tuple[str, TrainConfig], ...]:
    """Distinct (model key, section) with nothing set but what must be judged: a sweep of a thousand
    learning rates asks one thing. Sections without any such key are left out."""
    base, train = program.experiment.base, program.experiment.train
    asked = [(model_key(run.model), run.train) for run in program.runs]
    if base.probe_epochs or base.trunk_epochs:
        asked += [(key, stage_train(train, 1)) for key in models]
    found: dict[str, tuple[str, TrainConfig]] = {}
    for key, section in asked:
        judged = {
            name: PLACEHOLDERS.get(name, value)
            for name in CHECKED_KEYS
            if (value := getattr(section, name))
        }
        if judged:
            only = _minimal_train_config(judged)
            found.setdefault(digest([key, dump_without_defaults(only)], 64), (key, only))
    return tuple(found.values())


def _minimal_train_config(judged: Mapping[str, Any]) -> TrainConfig:
    """Long enough for its own sections, so that it would pass validation again."""
    sections = judged.get("unfreeze", ())
    epochs = max([TrainConfig().epochs, *(section.epoch + 1 for section in sections)])
    return TrainConfig().model_copy(update={**judged, "epochs": epochs})


def bases(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    if state.facts is None or state.finish_reason is not None:
        return
    resolved = resolve(program, state.facts)
    for plan in resolved.plans:
        if plan.final not in state.bases:
            yield from _next_stage(state, resolved, plan)


def _next_stage(state: State, resolved: ResolvedExperiment, plan: BasePlan) -> Iterator[AnyOrder]:
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
