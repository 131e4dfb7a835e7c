"""Distances between models by their predictions."""

from collections.abc import Mapping

import numpy as np

from workers.analysis.schema import Distances
from workers.scoring.metrics import log_softmax, predictions

SMALLEST = 1e-8
"""Least probability: with one that is 0 two models would be infinitely far apart."""
MAX_NUMBERS = 16_000_000
"""Most probabilities in memory at a time, of all models together."""


def num_images(num_models: int, num_classes: int, count: int) -> int:
    """Number of a split's `count` images that fit into memory for all models."""
    return min(count, max(1, MAX_NUMBERS // max(1, num_models * num_classes)))


def evenly_spaced(count: int, num: int) -> np.ndarray:
    """Indices of `num` of `count` images, evenly spaced."""
    rows: np.ndarray = np.arange(num) * count // num
    return rows


def distances(logits: Mapping[str, np.ndarray]) -> Distances:
    """Distances by model id, from (N, C) finite logits for the same images."""
    with np.errstate(under="ignore"):
        probabilities = [np.exp(log_softmax(rows)) for rows in logits.values()]
    p = np.stack([np.maximum(rows, SMALLEST).ravel() for rows in probabilities])
    predicted = np.stack([predictions(rows) for rows in logits.values()])
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
    """(1/N) sum (p - q) (log p - log q), of differences, so that it is 0 for equal models."""
    log_p = np.log(p)
    divergence = np.zeros((len(p), len(p)))
    for i in range(len(p)):
        for j in range(i + 1, len(p)):
            value = np.dot(p[i] - p[j], log_p[i] - log_p[j]) / num
            divergence[i, j] = divergence[j, i] = value
    return divergence
