"""Compare: soups and the ensemble against the best single model, on every split, honestly.

    cached predictions -> per image: class, loss -> difference, with a paired bootstrap interval

Nothing is chosen here. Both models are seen on the same resampled images, so what is hard for both
cancels, and the interval is of the difference.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workers import ensembles
from workers.evaluate import read_predictions
from workers.metrics import log_softmax, predictions, score
from workers.types import (
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
    """One event: per split, the difference of every soup and of the ensemble to the best single.

    A split on which the metric is no finite number is left out.
    """
    soups: dict[str, dict[str, Delta]] = {soup: {} for soup in order.soups}
    compared = {*order.soups, ensembles.SOFT_VOTING}
    vote_scores: dict[str, Score] = {}
    vote_deltas: dict[str, Delta] = {}
    for split in order.splits:
        labels, outcomes = _outcomes(order, split, worker)
        seed = [worker.setting.seed, zlib.crc32(split.encode())]
        single = outcomes[order.best_single]
        others = {name: each for name, each in outcomes.items() if name in compared}
        found = differences(labels, single, others, worker.setting.metric, seed)
        if order.members:
            vote_scores[split] = outcomes[ensembles.SOFT_VOTING].score
        for name, delta in found.items():
            (vote_deltas if name == ensembles.SOFT_VOTING else soups[name])[split] = delta
        worker.progress.touch()
    results = _ensemble_results(order, vote_scores, vote_deltas)
    for result in results:
        ensembles.save(worker.store, result)
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
        )
        for i, (name, each) in enumerate(finite.items())
    }


def _outcomes(
    order: CompareOrder, split: str, worker: Worker
) -> tuple[np.ndarray, dict[str, Outcome]]:
    """Labels, and the outcome of every model by id, the ensemble among them."""
    keys, labels, logits = read_predictions(worker.store, order.best_single, split)
    outcomes = {order.best_single: Outcome.of(logits, labels)}
    for soup in order.soups:
        others, _, logits = read_predictions(worker.store, soup, split)
        assert others == keys, f"predictions of {soup} on {split} are of other images"
        outcomes[soup] = Outcome.of(logits, labels)
    if order.members:
        others, _, logits = ensembles.soft_vote(worker.store, order.members, split)
        assert others == keys, f"predictions of {order.members[0]} on {split} are of other images"
        outcomes[ensembles.SOFT_VOTING] = Outcome.of(logits, labels)
    return labels, outcomes


def _ensemble_results(
    order: CompareOrder, scores: dict[str, Score], deltas: dict[str, Delta]
) -> tuple[EnsembleResult, ...]:
    if not order.members:
        return ()
    voting = EnsembleResult(
        id=ensembles.SOFT_VOTING,
        kind=ensembles.SOFT_VOTING,
        members=order.members,
        scores=scores,
        vs_best_single=deltas,
    )
    return (voting,)


def _value(outcome: Outcome, metric: Metric) -> float | None:
    value: float | None = getattr(outcome.score, metric)
    return value


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
