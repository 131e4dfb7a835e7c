"""Calibration: whether a model is right as often as its confidence says, by class and by bin.

One temperature, fitted on the selection split, divides the logits (Guo et al., 2017). It changes no
prediction. Soups need it, too.
"""

import numpy as np

from workers.analysis.schema import Calibration, Detail, OnSplit, Reliability
from workers.scoring.metrics import (
    NUM_BINS,
    bins_of,
    class_accuracies,
    ece,
    log_softmax,
    nll,
    predictions,
)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The divisor of (N, C) logits with the smallest negative log-likelihood, from e^-5 to e^5.

    Never worse than 1 on the given images. None if the likelihood is not finite.
    """
    from scipy.optimize import minimize_scalar

    wide = logits.astype(np.float64)

    def loss(log_scale: float) -> float:
        return nll(wide * np.exp(log_scale), labels)

    unscaled = loss(0.0)
    if not np.isfinite(unscaled):
        return None
    # Convex in the factor, so there is one minimum over its logarithm, too.
    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-best.x)) if best.fun < unscaled else 1.0


def on_split(
    logits: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float | None
) -> OnSplit:
    """Accuracy and calibration of a model on a split; None: the model has no temperature."""
    predicted = predictions(logits)
    classes = class_accuracies(predicted, labels, num_classes)
    return OnSplit(
        top1=float(np.mean(predicted == labels)),
        per_class=classes.tolist(),
        worst_class=float(np.nanmin(classes)),
        calibration=_calibration(logits, labels, temperature),
    )


def detail(
    logits: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float | None
) -> Detail:
    return Detail(
        confusion=confusion_matrix(predictions(logits), labels, num_classes).tolist(),
        reliability=reliability_bins(logits, labels),
        reliability_scaled=reliability_bins(_scaled(logits, temperature), labels),
    )


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) images by true class (row) and predicted class; predictions of -1 are left out."""
    valid = predicted >= 0
    flat = labels[valid] * num_classes + predicted[valid]
    table: np.ndarray = np.bincount(flat, minlength=num_classes**2).reshape(-1, num_classes)
    return table


def reliability_bins(logits: np.ndarray, labels: np.ndarray) -> Reliability:
    """Confidence and accuracy by bin; images without a finite confidence are in no bin."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    finite = np.isfinite(confidence)
    confidence, hits = confidence[finite], (predictions(logits) == labels)[finite]
    bins = bins_of(confidence)
    count = np.bincount(bins, minlength=NUM_BINS)
    return Reliability(
        count=count.tolist(),
        confidence=_means(bins, confidence, count),
        accuracy=_means(bins, hits, count),
    )


def _means(bins: np.ndarray, values: np.ndarray, count: np.ndarray) -> list[float | None]:
    totals = np.bincount(bins, values, NUM_BINS)
    return [float(total / num) if num else None for total, num in zip(totals, count, strict=True)]


def _calibration(logits: np.ndarray, labels: np.ndarray, temperature: float | None) -> Calibration:
    scaled = _scaled(logits, temperature)
    return Calibration(
        nll=nll(logits, labels),
        ece=ece(logits, labels),
        nll_scaled=None if temperature is None else nll(scaled, labels),
        ece_scaled=None if temperature is None else ece(scaled, labels),
    )


def _scaled(logits: np.ndarray, temperature: float | None) -> np.ndarray:
    return logits.astype(np.float64) / (temperature or 1.0)
