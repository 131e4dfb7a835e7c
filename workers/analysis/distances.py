"""Distances between models by what they predict, not by what they weigh."""

from collections.abc import Mapping

import numpy as np

from workers.analysis.schema import Distances
from workers.scoring.metrics import log_softmax, predictions

SMALLEST = 1e-8
"""Probabilities are no smaller: one that is 0 would put two models infinitely far apart."""
MAX_NUMBERS = 16_000_000
"""Probabilities held in memory at a time, of all models together."""


def num_images(num_models: int, num_classes: int, count: int) -> int:
    """Of a split with so many images, as many as memory allows."""
    return min(count, max(1, MAX_NUMBERS // max(1, num_models * num_classes)))


def evenly_spaced(count: int, num: int) -> np.ndarray:
    """`num` of `count` images, evenly spaced."""
    rows: np.ndarray = np.arange(num) * count // num
    return rows


def distances(logits: Mapping[str, np.ndarray]) -> Distances:
    """Between models by id, from their (N, C) logits of the same images; all finite."""
    with np.errstate(under="ignore"):
        soft = [np.exp(log_softmax(each)) for each in logits.values()]
    p = np.stack([np.maximum(each, SMALLEST).ravel() for each in soft])
    predicted = np.stack([predictions(each) for each in logits.values()])
    num = predicted.shape[1]
    return Distances(
        ids=list(logits),
        num_images=num,
        disagreement=disagreement(predicted).tolist(),
        symmetric_cross_entropy=_symmetric_cross_entropy(p, num).tolist(),
        jeffreys=_jeffreys(p, num).tolist(),
    )


def disagreement(predicted: np.ndarray) -> np.ndarray:
    """(K, K) shares of images that two models label differently, from (K, N) labels."""
    return np.stack([np.mean(predicted != row, axis=1) for row in predicted])


def _symmetric_cross_entropy(p: np.ndarray, num: int) -> np.ndarray:
    """-(1/N) sum (p log q + q log p), of (K, N * C) probabilities."""
    crossed = -(p @ np.log(p).T) / num
    both: np.ndarray = crossed + crossed.T
    np.fill_diagonal(both, 0.0)
    return both


def _jeffreys(p: np.ndarray, num: int) -> np.ndarray:
    """(1/N) sum (p - q) (log p - log q): as differences, so that equal models are 0 apart."""
    log_p = np.log(p)
    found = np.zeros((len(p), len(p)))
    for i in range(len(p)):
        for j in range(i + 1, len(p)):
            found[i, j] = found[j, i] = np.dot(p[i] - p[j], log_p[i] - log_p[j]) / num
    return found
