"""Bias and variance: how much of the loss all models share, and how much is chance.

The expectation is over the models. For the log loss, the average prediction whose loss is the mean
loss less the variance is proportional to exp(E log p), the softmax of the mean logits. So `bias` is
the loss of soft voting, and `variance` is what an ensemble gains.
"""

import numpy as np

from workers.analysis.schema import BiasVariance
from workers.scoring.metrics import log_softmax, predictions


class BiasVarianceAccumulator:
    """Sums of the models' predictions for the same images, one model at a time."""

    def __init__(self, labels: np.ndarray, num_classes: int) -> None:
        self.labels = labels
        self.num_models = 0
        self.votes = np.zeros((len(labels), num_classes), np.int32)
        """(N, C) numbers of models that predict this class for this image."""
        self.log_p = np.zeros((len(labels), num_classes))
        """(N, C) sums over the models."""

    def add(self, logits: np.ndarray) -> None:
        """Add a model by its (N, C) logits."""
        predicted = predictions(logits)
        (valid,) = np.nonzero(predicted >= 0)
        self.votes[valid, predicted[valid]] += 1
        self.log_p += log_softmax(logits)
        self.num_models += 1

    def result(self) -> BiasVariance:
        rows = np.arange(len(self.labels))
        share = self.votes / self.num_models
        main = self.votes.argmax(axis=1)
        is_wrong, right = main != self.labels, share[rows, self.labels]
        variance = 1 - share[rows, main]
        nll, nll_variance = self._log_loss(rows)
        return BiasVariance(
            num_models=self.num_models,
            loss=float(np.mean(1 - right)),
            bias=float(np.mean(is_wrong)),
            variance=float(np.mean(variance)),
            unbiased=float(np.mean(variance * ~is_wrong)),
            biased=float(np.mean(variance * is_wrong)),
            flipped=float(np.mean(right * is_wrong)),
            nll=nll,
            nll_bias=nll - nll_variance,
            nll_variance=nll_variance,
        )

    def _log_loss(self, rows: np.ndarray) -> tuple[float, float]:
        """(mean loss, variance). E KL(pbar||p) = sum pbar (log pbar - E log p), which is minus the
        logarithm of the normaliser of exp(E log p)."""
        mean = self.log_p / self.num_models
        variance = -np.log(np.exp(mean).sum(axis=1))
        return float(-np.mean(mean[rows, self.labels])), float(np.mean(variance))
