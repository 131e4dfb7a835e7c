"""Compare: soups and ensembles against the best single model, on every split, honestly.

    cached predictions -> per image: class, loss -> difference, with a paired bootstrap interval

Nothing is chosen here. Both models are seen on the same resampled images, so what is hard for both
cancels, and the interval is of the difference. Beside it stands, for top-1, the exact McNemar test.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers import ensembles
from workers.evaluate import read_predictions
from workers.metrics import log_softmax, mcnemar, predictions, score
from workers.stacking import Stacker
from workers.types import (
    SELECTION,
    AnyEvent,
    Compared,
    CompareOrder,
    Delta,
    EnsembleResult,
    Metric,
    Score,
)
from workers.worker import Worker

RESAMPLES = 2000


@dataclass(frozen=True)
class Outcome:
    """What a model did on a split, image by image; small, so that logits need not be kept."""

    score: Score
    predicted: np.ndarray
    """(N,) classes."""
    loss: np.ndarray
    """(N,) negative log-likelihood, nats."""

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray) -> "Outcome":
        loss = -log_softmax(logits)[np.arange(len(labels)), labels]
        return cls(score(logits, labels), predictions(logits), loss)


def compare(order: CompareOrder, attempt: int, worker: Worker) -> Iterator[AnyEvent]:
    """One event: per split, the difference of every soup and ensemble to the best single.

    A split on which the metric is no finite number is left out.
    """
    stacker = None
    if order.stacking:
        stacker = ensembles.fit_stacker(worker.store, order.stacking, order.folds)
    deltas: dict[str, dict[str, Delta]] = {soup: {} for soup in order.soups}
    scores: dict[str, dict[str, Score]] = {}
    for split in order.splits:
        labels, outcomes = _outcomes(order, stacker, split, worker)
        single = outcomes.pop(order.best_single)
        if order.best_single in order.soups:
            outcomes[order.best_single] = single
        seed = [worker.setting.seed, zlib.crc32(split.encode())]
        found = differences(labels, single, outcomes, worker.setting.metric, seed)
        for name, outcome in outcomes.items():
            scores.setdefault(name, {})[split] = outcome.score
        for name, delta in found.items():
            deltas.setdefault(name, {})[split] = delta
        worker.progress.touch()
    results = tuple(_ensemble_results(order, scores, deltas))
    for result in results:
        ensembles.save(worker.store, result, stacker if result.groups else None)
    soups = {soup: deltas[soup] for soup in order.soups}
    yield Compared(key=order.key, soups=soups, ensembles=results)


def differences(
    labels: np.ndarray,
    single: Outcome,
    others: dict[str, Outcome],
    metric: Metric,
    seed: list[int],
    resamples: int = RESAMPLES,
) -> dict[str, Delta]:
    """Metric of each of `others` minus that of `single`, with the percentile 95 % interval of a
    paired bootstrap over images (Efron and Tibshirani, 1993). All see the same resamples."""
    finite = {name: each for name, each in others.items() if _value(each, metric) is not None}
    base = _value(single, metric)
    if base is None or not finite:
        return {}
    drawn = np.empty((resamples, len(finite)))
    rng = np.random.default_rng(seed)
    for row in drawn:
        times = np.bincount(rng.integers(0, len(labels), len(labels)), minlength=len(labels))
        against = _resampled(labels, single, metric, times)
        row[:] = [_resampled(labels, each, metric, times) - against for each in finite.values()]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {
        name: Delta(
            metric=metric,
            delta=(_value(each, metric) or 0.0) - base,
            ci95=(float(low[i]), float(high[i])),
            p=_p_value(labels, single, each, metric),
        )
        for i, (name, each) in enumerate(finite.items())
    }


def _outcomes(
    order: CompareOrder, stacker: Stacker | None, split: str, worker: Worker
) -> tuple[np.ndarray, dict[str, Outcome]]:
    """Labels, and the outcome of every model by id, the ensembles among them."""
    keys, labels, logits = read_predictions(worker.store, order.best_single, split)
    outcomes = {order.best_single: Outcome.of(logits, labels)}

    def add(name: str, found: ensembles.Predictions) -> None:
        assert found[0] == keys, f"predictions of {name} on {split} are of other images"
        outcomes[name] = Outcome.of(found[2], labels)

    for soup in order.soups:
        add(soup, read_predictions(worker.store, soup, split))
    if order.members:
        add(ensembles.SOFT_VOTING, ensembles.soft_vote(worker.store, order.members, split))
    if stacker is not None and split != _fitted_on(order):
        add(ensembles.STACKING, ensembles.stack(worker.store, stacker, order.stacking, split))
    return labels, outcomes


def _fitted_on(order: CompareOrder) -> str:
    return ensembles.OUT_OF_FOLD if order.folds else SELECTION


def _ensemble_results(
    order: CompareOrder,
    scores: dict[str, dict[str, Score]],
    deltas: dict[str, dict[str, Delta]],
) -> Iterator[EnsembleResult]:
    def result(kind: str, members: tuple[str, ...], **stacking: Any) -> EnsembleResult:
        found, vs_best_single = scores.get(kind, {}), deltas.get(kind, {})
        return EnsembleResult(
            id=kind,
            kind=kind,
            members=members,
            scores=found,
            vs_best_single=vs_best_single,
            **stacking,
        )

    if order.members:
        yield result(ensembles.SOFT_VOTING, order.members)
    if order.stacking:
        members = tuple(member for group in order.stacking for member in group)
        groups, fitted_on = order.stacking, _fitted_on(order)
        yield result(ensembles.STACKING, members, groups=groups, fitted_on=fitted_on)


def _value(outcome: Outcome, metric: Metric) -> float | None:
    value: float | None = getattr(outcome.score, metric)
    return value


def _p_value(labels: np.ndarray, single: Outcome, other: Outcome, metric: Metric) -> float | None:
    if metric != "top1":
        return None
    return mcnemar(other.predicted == labels, single.predicted == labels)


def _resampled(labels: np.ndarray, outcome: Outcome, metric: Metric, times: np.ndarray) -> float:
    """The metric when image i is drawn `times[i]` times."""
    if metric == "top1":
        return float(times @ (outcome.predicted == labels)) / len(labels)
    if metric == "nll":
        return float(times @ outcome.loss) / len(labels)
    size = 1 + max(int(labels.max()), int(outcome.predicted.max()))
    hits = np.bincount(labels, times * (outcome.predicted == labels), size)
    named = np.bincount(labels, times, size) + np.bincount(outcome.predicted, times, size)
    present = named > 0
    return float(np.mean(2 * hits[present] / named[present]))
