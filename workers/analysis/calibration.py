"""Calibration: whether a model is as often right as it is sure, class by class and bin by bin.

One temperature, fitted on the selection split, divides the logits (Guo et al., 2017). It changes no
prediction, and souping is known not to make it superfluous.
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


def temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """What to divide (N, C) logits by for the smallest negative log-likelihood; e^-5 to e^5.

    Never worse than 1 on what it was fitted on. None where the likelihood is no finite number.
    """
    from scipy.optimize import minimize_scalar

    wide = logits.astype(np.float64)

    def loss(log_heat: float) -> float:
        return nll(wide * np.exp(log_heat), labels)

    unscaled = loss(0.0)
    if not np.isfinite(unscaled):
        return None
    # Convex in the factor, so of one valley in its logarithm, too.
    found = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x)) if found.fun < unscaled else 1.0


def on_split(
    logits: np.ndarray, labels: np.ndarray, num_classes: int, heat: float | None
) -> OnSplit:
    """What a model does on a split; `heat` is its temperature."""
    predicted = predictions(logits)
    classes = class_accuracies(predicted, labels, num_classes)
    return OnSplit(
        top1=float(np.mean(predicted == labels)),
        per_class=classes.tolist(),
        worst_class=float(np.nanmin(classes)),
        calibration=_calibration(logits, labels, heat),
    )


def detail(logits: np.ndarray, labels: np.ndarray, num_classes: int, heat: float | None) -> Detail:
    return Detail(
        confusion=confusion_matrix(predictions(logits), labels, num_classes).tolist(),
        reliability=reliability_bins(logits, labels),
        reliability_scaled=reliability_bins(_scaled(logits, heat), labels),
    )


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) images by true class (row) and predicted class; a prediction of -1 is nowhere."""
    said = predicted >= 0
    flat = labels[said] * num_classes + predicted[said]
    table: np.ndarray = np.bincount(flat, minlength=num_classes**2).reshape(-1, num_classes)
    return table


def reliability_bins(logits: np.ndarray, labels: np.ndarray) -> Reliability:
    """Images without a finite confidence are in no bin."""
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


def _calibration(logits: np.ndarray, labels: np.ndarray, heat: float | None) -> Calibration:
    scaled = _scaled(logits, heat)
    return Calibration(
        nll=nll(logits, labels),
        ece=ece(logits, labels),
        nll_scaled=None if heat is None else nll(scaled, labels),
        ece_scaled=None if heat is None else ece(scaled, labels),
    )


def _scaled(logits: np.ndarray, heat: float | None) -> np.ndarray:
    return logits.astype(np.float64) / (heat or 1.0)
