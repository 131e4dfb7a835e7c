"""Paired differences of two models on the same images, with bootstrap intervals.

Both models are scored on the same resampled images, so images that are hard for both cancel out.
For top-1 there is also the p-value of the exact McNemar test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workers.scoring.metrics import log_softmax, mcnemar, predictions, score
from workers.types import Delta, Metric, Score

RESAMPLES = 2000


@dataclass(frozen=True)
class ImageOutcomes:
    """A model's predictions and losses on a split, image by image; much smaller than its logits."""

    score: Score
    predicted: np.ndarray
    """(N,) class indices."""
    loss: np.ndarray
    """(N,) negative log-likelihood, nats."""

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray) -> "ImageOutcomes":
        loss = -log_softmax(logits)[np.arange(len(labels)), labels]
        return cls(score(logits, labels), predictions(logits), loss)


def paired_differences(
    labels: np.ndarray,
    single: ImageOutcomes,
    others: dict[str, ImageOutcomes],
    metric: Metric,
    seed: list[int],
    resamples: int = RESAMPLES,
    touch: Callable[[], object] = lambda: None,
) -> dict[str, Delta]:
    """Metric of each of `others` minus that of `single`, with the percentile 95 % interval of a
    paired bootstrap over images (Efron and Tibshirani, 1993). All share the same resamples. `touch`
    is called after each."""
    finite = {name: other for name, other in others.items() if _value(other, metric) is not None}
    base = _value(single, metric)
    if base is None or not finite:
        return {}
    deltas = np.empty((resamples, len(finite)))
    rng = np.random.default_rng(seed)
    for row in deltas:
        times = np.bincount(rng.integers(0, len(labels), len(labels)), minlength=len(labels))
        resampled = _resampled(labels, single, metric, times)
        row[:] = [_resampled(labels, other, metric, times) - resampled for other in finite.values()]
        touch()
    low, high = np.percentile(deltas, [2.5, 97.5], axis=0)
    return {
        name: Delta(
            metric=metric,
            delta=(_value(other, metric) or 0.0) - base,
            ci95=(float(low[i]), float(high[i])),
            p=_p_value(labels, single, other, metric),
        )
        for i, (name, other) in enumerate(finite.items())
    }


def _value(outcome: ImageOutcomes, metric: Metric) -> float | None:
    value: float | None = getattr(outcome.score, metric)
    return value


def _p_value(
    labels: np.ndarray, single: ImageOutcomes, other: ImageOutcomes, metric: Metric
) -> float | None:
    if metric != "top1":
        return None
    _, _, p_value = mcnemar(other.predicted == labels, single.predicted == labels)
    return p_value


def _resampled(
    labels: np.ndarray, outcome: ImageOutcomes, metric: Metric, times: np.ndarray
) -> float:
    """The metric when image i is drawn `times[i]` times."""
    if metric == "top1":
        return float(times @ (outcome.predicted == labels)) / len(labels)
    if metric == "nll":
        return float(times @ outcome.loss) / len(labels)
    size = 1 + max(int(labels.max()), int(outcome.predicted.max()))
    hits = np.bincount(labels, times * (outcome.predicted == labels), size)
    total = np.bincount(labels, times, size) + np.bincount(outcome.predicted, times, size)
    present = total > 0
    return float(np.mean(2 * hits[present] / total[present]))
