"""Preflight and bases: what must exist before any run can start."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.experiment.resolved import (
    BasePlan,
    ExpandedExperiment,
    distinct_models,
    stage_train,
)
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.training import segment
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
"""Preflight checks only whether these keys are set, so one placeholder value is enough."""


def preflight_order(expanded: ExpandedExperiment) -> PreflightOrder:
    """The first order of an experiment, and the only one that needs no moment."""
    default = expanded.experiment.train
    models = distinct_models(expanded.runs)
    return PreflightOrder(
        models=tuple(models.values()),
        optimizers=tuple(sorted({run.train.opt for run in expanded.runs} | {default.opt})),
        train_configs=train_configs_to_check(expanded, models),
        **_rounds(expanded),
    )


def _rounds(expanded: ExpandedExperiment) -> dict[str, Any]:
    """What preflight needs to see that at least one sync round happens."""
    every = expanded.experiment.merge.every
    if not expanded.is_sync or isinstance(every, int):
        return {}
    configs = [run.train for run in expanded.runs]
    longest = max(configs, key=lambda t: t.epochs / (t.batch_size * t.grad_accum_steps))
    return {"round_steps": period_steps(every, 1), "longest_train": longest}


def train_configs_to_check(
    expanded: ExpandedExperiment, models: Mapping[str, ModelConfig]
) -> tuple[tuple[str, TrainConfig], ...]:
    """Distinct (model key, train config) with only the checked keys set: a sweep of a thousand
    learning rates asks one thing. Configs without any such key are left out."""
    base, default = expanded.experiment.base, expanded.experiment.train
    configs = [(model_key(run.model), run.train) for run in expanded.runs]
    if base.probe_epochs or base.trunk_epochs:
        configs += [(key, stage_train(default, 1)) for key in models]
    distinct: dict[str, tuple[str, TrainConfig]] = {}
    for key, config in configs:
        checked = {
            name: PLACEHOLDERS.get(name, value)
            for name in CHECKED_KEYS
            if (value := getattr(config, name))
        }
        if checked:
            minimal = _minimal_train_config(checked)
            entry = digest([key, dump_without_defaults(minimal)], 64)
            distinct.setdefault(entry, (key, minimal))
    return tuple(distinct.values())


def _minimal_train_config(checked: Mapping[str, Any]) -> TrainConfig:
    """Long enough for its unfreezing, so that it would pass validation again."""
    sections = checked.get("unfreeze", ())
    epochs = max([TrainConfig().epochs, *(section.epoch + 1 for section in sections)])
    return TrainConfig().model_copy(update={**checked, "epochs": epochs})


def base_orders(moment: Moment) -> Iterator[AnyOrder]:
    if moment.state.finish_reason is not None:
        return
    for plan in moment.resolved.plans:
        if plan.final not in moment.state.bases:
            yield from _next_stage(moment, plan)


def _next_stage(moment: Moment, plan: BasePlan) -> Iterator[AnyOrder]:
    """Fresh weights, then each stage from where the one before ended, then the final base."""
    state = moment.state
    if plan.fresh not in state.bases:
        yield BaseOrder(name=plan.fresh, model=plan.model)
        return
    start = state.bases[plan.fresh]
    for stage in plan.stages:
        if state.run(stage.id).failed is not None:
            return
        order = segment(moment, stage, start)
        if order is not None:
            yield order
            return
        last = state.run(stage.id).last
        assert last is not None, f"stage {stage.id} ended without a checkpoint"
        start = last
    yield BaseOrder(name=plan.final, model=plan.model, source=start)
