"""Preflight and bases: what must exist before any run can start, and repairs of what was damaged.

    splits.parquet   preflight, which refuses other images than those of the beginning
    base/<hash>      the base order, which refuses other bytes
    predictions/     a score order of the checkpoint

Damaged files are made again before anything else is ordered.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.experiment.resolved import (
    BasePlan,
    ExpandedExperiment,
    distinct_models,
    run_and_ema,
    stage_train,
)
from orchestrator.schedule import sync_rounds
from orchestrator.schedule.final_merges import written_soups
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.training import segment
from orchestrator.state.damage_reducers import base_of
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig, period_steps
from workers.storage.layout import SPLITS, outcomes_path, predictions_path
from workers.types import (
    AnyOrder,
    BaseOrder,
    Checkpoint,
    Cohort,
    PreflightOrder,
    ScoreOrder,
    digest,
    dump_without_defaults,
    model_key,
    run_id_of,
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


# Repairs


def repair_orders(moment: Moment) -> Iterator[AnyOrder]:
    """Orders in flight included; those that were given up are left out."""
    if not moment.state.damaged:
        return
    for order in _repairs(moment):
        if order.id not in moment.state.gave_up:
            yield order


def _repairs(moment: Moment) -> Iterator[AnyOrder]:
    if SPLITS in moment.state.damaged:
        order = preflight_order(moment.expanded)
        yield order.model_copy(update={"expected": moment.state.preflight})
        return  # the other ones read the images
    yield from _base_orders(moment)
    yield from _score_orders(moment)


def _base_orders(moment: Moment) -> Iterator[AnyOrder]:
    state = moment.state
    names = {base_of(path) for path in state.damaged} & set(state.bases)
    for plan in moment.resolved.plans:
        for name in dict.fromkeys((plan.fresh, plan.final)):
            if name in names:
                source = None if name == plan.fresh else state.run(plan.stages[-1].id).last
                expected = state.bases[name].sha256
                yield BaseOrder(name=name, model=plan.model, source=source, expected=expected)


def _score_orders(moment: Moment) -> Iterator[AnyOrder]:
    for cohort, checkpoint in _scored_checkpoints(moment):
        folds = tuple(f"fold:{k}" for k in range(moment.config.data.folds or 0))
        splits = tuple(
            split
            for split in (*moment.resolved.splits, *folds)
            if not moment.state.damaged.isdisjoint(_paths(checkpoint.id, split))
        )
        if splits:
            yield ScoreOrder(cohort=cohort, checkpoint=checkpoint, splits=splits)


def _paths(checkpoint: str, split: str) -> set[str]:
    return {predictions_path(checkpoint, split), outcomes_path(checkpoint, split)}


def _scored_checkpoints(moment: Moment) -> Iterator[tuple[Cohort, Checkpoint]]:
    """All that may have predictions."""
    resolved, state = moment.resolved, moment.state
    for run in moment.expanded.runs:
        for variant in run_and_ema(run):
            for event in state.run(variant.id).checkpoints:
                yield resolved.cohort_of[run_id_of(variant.id)], event.checkpoint
    for final, name in written_soups(moment):
        yield final.cohort, state.soups[name]
    for group in sync_rounds.sync_groups(resolved) if moment.expanded.is_sync else ():
        for merge in sync_rounds.rounds_of(moment, group):
            if (name := sync_rounds.merged_soup_name(merge)) in state.soups:
                yield group.cohort, state.soups[name]
