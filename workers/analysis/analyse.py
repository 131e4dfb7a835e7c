"""Analyse: one pass over cached predictions and one over the weights; writes `analysis.json`.

    val, test, ood --> every model: classes, calibration
                   --> runs of a cohort: bias and variance
                   --> all together: distances, map

One model's predictions are in memory at a time, and of the distances as many images of all as fit.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workers.analysis.bias_variance import BiasVarianceAccumulator
from workers.analysis.calibration import detail, on_split, temperature
from workers.analysis.distances import distances, evenly_spaced, num_images
from workers.analysis.mds import mds_map
from workers.analysis.schema import (
    ANALYSIS_SCHEMA,
    Analysis,
    Barrier,
    BiasVariance,
    Detail,
    Model,
    OnSplit,
    Paired,
    SplitAnalysis,
)
from workers.analysis.weight_space import measure_weight_space
from workers.context import WorkerContext
from workers.scoring import ensembles
from workers.scoring.ensembles import Predictions
from workers.scoring.metrics import mcnemar, predictions
from workers.storage.layout import ANALYSIS
from workers.storage.predictions import read_predictions
from workers.storage.store import CorruptFile
from workers.types import SELECTION, Analysed, AnalysedModel, AnalyseOrder, AnyEvent

DIGITS = 6
"""Significant ones of every number in the file."""
CERTAIN, OFTEN = 1.959964, 0.841621
"""Of the normal distribution: 95 % two-sided, and four times in five."""


def analyse(order: AnalyseOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """One event, once `analysis.json` is in the store; the same order writes the same bytes.

    A corrupt checkpoint is an error like any other here: the soups are made, and taking one of
    their ingredients back would unmake them.
    """
    began = time.monotonic()
    try:
        analysis = analysed(order, worker)
    except CorruptFile as error:
        raise RuntimeError(f"analysis: {error}") from error
    text = json.dumps(_rounded(analysis), separators=(",", ":")) + "\n"
    worker.store.write(ANALYSIS, text.encode())
    yield Analysed(key=order.key, busy_s=time.monotonic() - began)


def analysed(order: AnalyseOrder, worker: WorkerContext) -> Analysis:
    heats: dict[str, float | None] = {}
    splits = {split: _split(order, split, heats, worker) for split in order.splits}
    return Analysis(
        schema=ANALYSIS_SCHEMA,
        key=order.key,
        metric=worker.setting.metric,
        classes=list(worker.images.classes),
        best_single=order.best_single,
        served=order.served,
        models=[_model(subject, heats) for subject in order.subjects],
        left_out=list(order.not_analysed),
        splits=splits,
        geometry=[measure_weight_space(each, worker) for each in order.weighed],
        barrier=_barrier(order),
    )


@dataclass
class _SplitModels:
    """What is kept of the models on a split."""

    labels: np.ndarray
    num_classes: int
    rows: np.ndarray
    """Images that distances look at."""
    models: dict[str, OnSplit] = field(default_factory=dict)
    details: dict[str, Detail] = field(default_factory=dict)
    tallies: dict[str, BiasVarianceAccumulator] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    """On `rows`, of models whose predictions are finite."""
    right: dict[str, np.ndarray] = field(default_factory=dict)
    """Likewise on all images, of the models with details."""


def _split(
    order: AnalyseOrder, split: str, heats: dict[str, float | None], worker: WorkerContext
) -> SplitAnalysis:
    """`heats`: temperatures by id; filled in by the selection split, which comes first."""
    seen: _SplitModels | None = None
    for subject in order.subjects:
        found = _predictions(subject, split, worker)
        if found is None:
            continue
        _, labels, logits = found
        if seen is None:
            num = num_images(len(order.subjects), logits.shape[1], len(labels))
            seen = _SplitModels(labels, logits.shape[1], evenly_spaced(len(labels), num))
        if split == SELECTION:
            heats[subject.id] = temperature(logits, labels)
        _add_model(seen, subject, logits, heats.get(subject.id), order)
        worker.progress.touch()
    assert seen is not None, "there is nothing to analyse"
    return _concluded(order, seen, worker.setting.seed)


def _predictions(subject: AnalysedModel, split: str, worker: WorkerContext) -> Predictions | None:
    """None where an ensemble is not to be judged: it was fitted on this split."""
    if subject.kind != "ensemble":
        return read_predictions(worker.store, subject.predictions or subject.id, split)
    made, stacker = ensembles.read_ensemble(worker.store, subject.id)
    if stacker is None:
        return ensembles.soft_vote(worker.store, made.members, split)
    if split == made.fitted_on:
        return None
    return ensembles.stack(worker.store, stacker, made.groups, split)


def _add_model(
    seen: _SplitModels,
    subject: AnalysedModel,
    logits: np.ndarray,
    heat: float | None,
    order: AnalyseOrder,
) -> None:
    labels, num_classes = seen.labels, seen.num_classes
    seen.models[subject.id] = on_split(logits, labels, num_classes, heat)
    if subject.id in (order.best_single, order.served):
        seen.details[subject.id] = detail(logits, labels, num_classes, heat)
        seen.right[subject.id] = predictions(logits) == labels
    if subject.kind == "ingredient" and subject.cohort is not None:
        seen.tallies.setdefault(subject.cohort, BiasVarianceAccumulator(labels, num_classes)).add(
            logits
        )
    if np.isfinite(logits).all():
        seen.logits[subject.id] = logits[seen.rows]


def _concluded(order: AnalyseOrder, seen: _SplitModels, seed: int) -> SplitAnalysis:
    apart = distances(seen.logits)
    jeffreys = np.array(apart["jeffreys"], np.float64)
    return SplitAnalysis(
        count=len(seen.labels),
        models=seen.models,
        details=seen.details,
        bias_variance=_decomposed(seen.tallies),
        distances=apart,
        map=mds_map(apart["ids"], jeffreys, seed) if len(jeffreys) > 2 else None,
        paired=_paired(order, seen.right),
    )


def _decomposed(tallies: Mapping[str, BiasVarianceAccumulator]) -> dict[str, BiasVariance]:
    return {name: each.result() for name, each in tallies.items() if each.num_models > 1}


def _paired(order: AnalyseOrder, right: Mapping[str, np.ndarray]) -> Paired | None:
    single, soup = right.get(order.best_single), right.get(order.served or "")
    if single is None or soup is None or order.best_single == order.served:
        return None
    only_single, only_soup, _ = mcnemar(single, soup)
    return Paired(
        only_single=only_single,
        only_soup=only_soup,
        detectable=detectable(only_single + only_soup, len(single)),
    )


def detectable(num_apart: int, count: int) -> float:
    """Gain in accuracy that a paired comparison of `count` images finds four times in five, when
    two models differ in whether they are right on `num_apart` of them (Connor, 1987, to first
    order): the standard error of their difference is the root of that number over `count`."""
    return (CERTAIN + OFTEN) * math.sqrt(max(num_apart, 1)) / count


def _model(subject: AnalysedModel, heats: Mapping[str, float | None]) -> Model:
    return Model(
        id=subject.id,
        kind=subject.kind,
        label=subject.label,
        cohort=subject.cohort,
        temperature=heats.get(subject.id),
    )


def _barrier(order: AnalyseOrder) -> Barrier | None:
    if not order.path or order.served is None:
        return None
    scores = [score for _, score in order.path]
    known = [score for score in scores[1:-1] if score is not None]
    ends = [score for score in (scores[0], scores[-1]) if score is not None]
    return Barrier(
        single=order.best_single,
        soup=order.served,
        fraction=[fraction for fraction, _ in order.path],
        score=scores,
        height=min(ends) - min(known) if known and len(ends) == 2 else None,
    )


def _rounded(value: Any) -> Any:
    """Few digits, so that the file stays small; null for what JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
