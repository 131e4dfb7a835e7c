"""Compare: soups and ensembles against the best single model, on every split.

    cached predictions -> per image: class, loss -> difference, with a paired bootstrap interval

Nothing is selected here.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from workers.context import WorkerContext
from workers.scoring import ensembles
from workers.scoring.bootstrap import ImageOutcomes, paired_differences
from workers.scoring.stacking import Stacker
from workers.storage.predictions import read_predictions
from workers.types import (
    SELECTION,
    AnyEvent,
    Compared,
    CompareOrder,
    Delta,
    EnsembleResult,
    FileInfo,
    Score,
)

FIT_LIMIT_S = 3600.0
"""Longest time that the fit of a stacked classifier may take."""


def compare(order: CompareOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """One event: per split, the difference of every soup and ensemble to the best single model.

    A split is left out if the metric is not finite.
    """
    stacker = None
    if order.stacking:
        with worker.progress.busy("fitting the stacked classifier", FIT_LIMIT_S):
            stacker = ensembles.fit_stacker(worker.store, order.stacking, order.folds)
    deltas: dict[str, dict[str, Delta]] = {soup: {} for soup in order.soups}
    scores: dict[str, dict[str, Score]] = {}
    for split in order.splits:
        labels, outcomes = _outcomes(order, stacker, split, worker)
        single = outcomes.pop(order.best_single)
        if order.best_single in order.soups:
            outcomes[order.best_single] = single
        seed = [worker.config.seed, zlib.crc32(split.encode())]
        differences = paired_differences(
            labels, single, outcomes, worker.config.metric, seed, touch=worker.progress.beat
        )
        for name, outcome in outcomes.items():
            scores.setdefault(name, {})[split] = outcome.score
        for name, delta in differences.items():
            deltas.setdefault(name, {})[split] = delta
        worker.progress.touch()
    results = tuple(_ensemble_results(order, scores, deltas))
    files: dict[str, FileInfo] = {}
    for result in results:
        files |= ensembles.write_ensemble(worker.store, result, stacker if result.groups else None)
    soups = {soup: deltas[soup] for soup in order.soups}
    yield Compared(key=order.key, soups=soups, ensembles=results, files=files)


def _outcomes(
    order: CompareOrder, stacker: Stacker | None, split: str, worker: WorkerContext
) -> tuple[np.ndarray, dict[str, ImageOutcomes]]:
    """Labels, and the outcomes of every model and ensemble by id."""
    store = worker.store
    keys, labels, logits = read_predictions(store, order.best_single, split)
    outcomes = {order.best_single: ImageOutcomes.of(logits, labels)}

    def add(name: str, predictions: ensembles.Predictions) -> None:
        own_keys, _, logits = predictions
        assert own_keys == keys, f"predictions of {name} on {split} are of other images"
        outcomes[name] = ImageOutcomes.of(logits, labels)

    for soup in order.soups:
        add(soup, read_predictions(store, soup, split))
    if order.members:
        add(ensembles.SOFT_VOTING, ensembles.soft_vote(store, order.members, split))
    if stacker is not None and split != _fitted_on(order):
        stacked = ensembles.stack(store, stacker, order.stacking, split)
        add(ensembles.STACKING, stacked)
    return labels, outcomes


def _fitted_on(order: CompareOrder) -> str:
    return ensembles.OUT_OF_FOLD if order.folds else SELECTION


def _ensemble_results(
    order: CompareOrder,
    scores: dict[str, dict[str, Score]],
    deltas: dict[str, dict[str, Delta]],
) -> Iterator[EnsembleResult]:
    def result(kind: str, members: tuple[str, ...], **stacking: Any) -> EnsembleResult:
        return EnsembleResult(
            id=kind,
            kind=kind,
            members=members,
            scores=scores.get(kind, {}),
            vs_best_single=deltas.get(kind, {}),
            **stacking,
        )

    if order.members:
        yield result(ensembles.SOFT_VOTING, order.members)
    if order.stacking:
        members = tuple(member for group in order.stacking for member in group)
        groups, fitted_on = order.stacking, _fitted_on(order)
        yield result(ensembles.STACKING, members, groups=groups, fitted_on=fitted_on)
