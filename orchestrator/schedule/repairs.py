"""Repairs: files that are a function of the rest are made again, before anything else is ordered.

splits.parquet   preflight, which refuses other images than those of the beginning
base/<hash>      the base order, which refuses other bytes
predictions/     a score order of the checkpoint
"""

from collections.abc import Iterator
from itertools import chain

from orchestrator.experiment.resolved import run_and_ema
from orchestrator.schedule import sync_rounds
from orchestrator.schedule.final_merges import written_soups
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.preparation import preflight_order
from orchestrator.state.damage_reducers import base_of
from orchestrator.state.state import State
from workers.storage.layout import SPLITS, outcomes_path, predictions_dir, predictions_path
from workers.types import (
    AnyOrder,
    BaseOrder,
    Checkpoint,
    Cohort,
    FileInfo,
    ScoreOrder,
    run_id_of,
)


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


def with_expected_files(state: State, order: AnyOrder) -> AnyOrder:
    """The order with the sha256 of the files that it may read."""
    files = {path: file.sha256 for path, file in _files_read(state, order)}
    return order.model_copy(update={"files": files})


def _files_read(state: State, order: AnyOrder) -> Iterator[tuple[str, FileInfo]]:
    """An order that compares models may read all."""
    if order.kind in ("compare", "analyse", "diversity"):
        yield from chain.from_iterable(files.items() for files in state.files.values())
        return
    if order.kind != "preflight":
        yield from state.files.get("", {}).items()
    ids: tuple[str, ...] = ()
    if order.kind == "taste":
        ids = order.hard_images_first
    elif order.kind == "score":
        ids = (order.checkpoint.id,)
    for id_ in ids:
        yield from state.files.get(predictions_dir(id_), {}).items()
