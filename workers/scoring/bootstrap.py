"""Paired differences of two models on the same images, with bootstrap intervals.

Both models are seen on the same resampled images, so what is hard for both cancels, and the
interval is of the difference. Beside it stands, for top-1, the exact McNemar test.
"""

from dataclasses import dataclass

import numpy as np

from workers.scoring.metrics import log_softmax, mcnemar, predictions, score
from workers.types import Delta, Metric, Score

RESAMPLES = 2000


@dataclass(frozen=True)
class ImageOutcomes:
    """What a model did on a split, image by image; small, so that logits need not be kept."""

    score: Score
    predicted: np.ndarray
    """(N,) classes."""
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
    named = np.bincount(labels, times, size) + np.bincount(outcome.predicted, times, size)
    present = named > 0
    return float(np.mean(2 * hits[present] / named[present]))
