"""Random logits that are right more often than not."""

from collections.abc import Iterable

import numpy as np

from workers.analysis.bias_variance import BiasVarianceAccumulator
from workers.analysis.schema import BiasVariance


def logits_of(seed: int, labels: np.ndarray, num_classes: int = 5, heat: float = 1.0) -> np.ndarray:
    """float32 (N, C)"""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += 1.2
    return (logits * heat).astype(np.float32)


def labels_of(seed: int, count: int = 120, num_classes: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, count)


def decompose(models: Iterable[np.ndarray], labels: np.ndarray, num_classes: int) -> BiasVariance:
    """Bias and variance of models by their (N, C) logits."""
    accumulator = BiasVarianceAccumulator(labels, num_classes)
    for logits in models:
        accumulator.add(logits)
    return accumulator.result()
