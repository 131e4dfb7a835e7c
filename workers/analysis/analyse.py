"""Analyse: one pass over cached predictions and one over the weights; writes `analysis.json`.

    val, test, ood --> every model: classes, calibration
                   --> runs of a cohort: bias and variance
                   --> all models: distances, map

One model's predictions are in memory at a time. Distances use as many images as fit for all models.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workers.analysis.bias_variance import BiasVarianceAccumulator
from workers.analysis.calibration import detail, fit_temperature, on_split
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
from workers.storage.layout import ANALYSIS, checkpoint_of, staged_path
from workers.storage.predictions import read_predictions
from workers.storage.store import CorruptFile
from workers.types import SELECTION, Analysed, AnalysedModel, AnalyseOrder, AnyEvent, FileInfo

DIGITS = 6
"""Significant digits of every number in the file."""
SILENCE_LIMIT_S = 1800.0
"""Longest time that the distances or the map of all models may take."""
QUANTILE_975, QUANTILE_80 = 1.959964, 0.841621
"""Quantiles of the normal distribution: 95 % two-sided confidence, and a power of 80 %."""


def analyse(order: AnalyseOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """One event, once the analysis is staged; the same order writes the same bytes.

    A corrupt checkpoint is a plain error here: as `corrupt` it would be dropped as an ingredient,
    and soups that exist already would be dropped with it.
    """
    began = time.monotonic()
    try:
        analysis = analysed(order, worker)
    except CorruptFile as error:
        if checkpoint_of(str(error)) is None:
            raise
        raise RuntimeError(f"analysis: {error}") from error
    content = (json.dumps(_rounded(analysis), separators=(",", ":")) + "\n").encode()
    worker.store.write(staged_path(order.id, attempt, ANALYSIS), content)
    file = FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    yield Analysed(key=order.key, busy_s=time.monotonic() - began, files={ANALYSIS: file})


def analysed(order: AnalyseOrder, worker: WorkerContext) -> Analysis:
    temperatures: dict[str, float | None] = {}
    splits = {split: _split(order, split, temperatures, worker) for split in order.splits}
    return Analysis(
        schema=ANALYSIS_SCHEMA,
        key=order.key,
        metric=worker.config.metric,
        classes=list(worker.images.classes),
        best_single=order.best_single,
        served=order.served,
        models=[_model(model, temperatures) for model in order.subjects],
        left_out=list(order.not_analysed),
        splits=splits,
        geometry=[measure_weight_space(group, worker) for group in order.weighed],
        barrier=_barrier(order),
    )


@dataclass
class _SplitModels:
    """Results of the models on a split, and what distances need of their logits."""

    labels: np.ndarray
    num_classes: int
    rows: np.ndarray
    """Indices of the images for distances."""
    models: dict[str, OnSplit] = field(default_factory=dict)
    details: dict[str, Detail] = field(default_factory=dict)
    accumulators: dict[str, BiasVarianceAccumulator] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    """Logits on `rows`, of models whose logits are finite."""
    hits: dict[str, np.ndarray] = field(default_factory=dict)
    """(N,) rights and wrongs on all images, of the models with details."""


def _split(
    order: AnalyseOrder,
    split: str,
    temperatures: dict[str, float | None],
    worker: WorkerContext,
) -> SplitAnalysis:
    """`temperatures` by model id; filled in by the selection split, which comes first."""
    models: _SplitModels | None = None
    for model in order.subjects:
        cached = _predictions(model, split, worker)
        if cached is None:
            continue
        _, labels, logits = cached
        if models is None:
            num = num_images(len(order.subjects), logits.shape[1], len(labels))
            models = _SplitModels(labels, logits.shape[1], evenly_spaced(len(labels), num))
        if split == SELECTION:
            temperatures[model.id] = fit_temperature(logits, labels)
        _add_model(models, model, logits, temperatures.get(model.id), order)
        worker.progress.touch()
    assert models is not None, "there is nothing to analyse"
    with worker.progress.busy(f"comparing all models on {split}", SILENCE_LIMIT_S):
        return _analysis_of(order, models, worker.config.seed)


def _predictions(model: AnalysedModel, split: str, worker: WorkerContext) -> Predictions | None:
    """The model's predictions. None: an ensemble that was fitted on this split."""
    if model.kind != "ensemble":
        return read_predictions(worker.store, model.predictions or model.id, split)
    ensemble, stacker = ensembles.read_ensemble(worker.store, model.id)
    if stacker is None:
        return ensembles.soft_vote(worker.store, ensemble.members, split)
    if split == ensemble.fitted_on:
        return None
    return ensembles.stack(worker.store, stacker, ensemble.groups, split)


def _add_model(
    models: _SplitModels,
    model: AnalysedModel,
    logits: np.ndarray,
    temperature: float | None,
    order: AnalyseOrder,
) -> None:
    labels, num_classes = models.labels, models.num_classes
    models.models[model.id] = on_split(logits, labels, num_classes, temperature)
    if model.id in (order.best_single, order.served):
        models.details[model.id] = detail(logits, labels, num_classes, temperature)
        models.hits[model.id] = predictions(logits) == labels
    if model.kind == "ingredient" and model.cohort is not None:
        new = BiasVarianceAccumulator(labels, num_classes)
        models.accumulators.setdefault(model.cohort, new).add(logits)
    if np.isfinite(logits).all():
        models.logits[model.id] = logits[models.rows]


def _analysis_of(order: AnalyseOrder, models: _SplitModels, seed: int) -> SplitAnalysis:
    between = distances(models.logits)
    jeffreys = np.array(between["jeffreys"], np.float64)
    return SplitAnalysis(
        count=len(models.labels),
        models=models.models,
        details=models.details,
        bias_variance=_bias_variance(models.accumulators),
        distances=between,
        map=mds_map(between["ids"], jeffreys, seed) if len(jeffreys) > 2 else None,
        paired=_paired(order, models.hits),
    )


def _bias_variance(
    accumulators: Mapping[str, BiasVarianceAccumulator],
) -> dict[str, BiasVariance]:
    return {
        cohort: accumulator.result()
        for cohort, accumulator in accumulators.items()
        if accumulator.num_models > 1
    }


def _paired(order: AnalyseOrder, hits: Mapping[str, np.ndarray]) -> Paired | None:
    single, soup = hits.get(order.best_single), hits.get(order.served or "")
    if single is None or soup is None or order.best_single == order.served:
        return None
    only_single, only_soup, _ = mcnemar(single, soup)
    return Paired(
        only_single=only_single,
        only_soup=only_soup,
        detectable=detectable(only_single + only_soup, len(single)),
    )


def detectable(num_different: int, count: int) -> float:
    """Gain in accuracy that a paired comparison on `count` images detects with a power of 80 %, if
    only one of the models is right on `num_different` of them (Connor, 1987, to first order): the
    standard error of the difference is the root of that number over `count`."""
    return (QUANTILE_975 + QUANTILE_80) * math.sqrt(max(num_different, 1)) / count


def _model(model: AnalysedModel, temperatures: Mapping[str, float | None]) -> Model:
    return Model(
        id=model.id,
        kind=model.kind,
        label=model.label,
        cohort=model.cohort,
        temperature=temperatures.get(model.id),
    )


def _barrier(order: AnalyseOrder) -> Barrier | None:
    if not order.path or order.served is None:
        return None
    scores = [score for _, score in order.path]
    between = [score for score in scores[1:-1] if score is not None]
    ends = [score for score in (scores[0], scores[-1]) if score is not None]
    return Barrier(
        single=order.best_single,
        soup=order.served,
        fraction=[fraction for fraction, _ in order.path],
        score=scores,
        height=min(ends) - min(between) if between and len(ends) == 2 else None,
    )


def _rounded(value: Any) -> Any:
    """Numbers with few digits, to keep the file small; null if not finite."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
