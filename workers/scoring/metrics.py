"""Metrics: a Score from logits and labels, in numpy."""

import numpy as np
from scipy.special import bdtr

from workers.types import Score

NUM_BINS = 15


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Top-1, worst class, macro-F1, log-likelihood and calibration error of (N, C) logits.

    A row with a NaN is a wrong prediction. A metric that is not finite is None. Raises ValueError
    for an empty split.
    """
    if not len(labels):
        raise ValueError("no images to score; the split is empty")
    predicted = predictions(logits)
    has_nan = bool((predicted < 0).any())
    return Score(
        count=len(labels),
        top1=float(np.mean(predicted == labels)),
        macro_f1=None if has_nan else macro_f1(predicted, labels),
        nll=_finite(nll(logits, labels)),
        ece=_finite(ece(logits, labels)),
        worst_class=float(np.nanmin(class_accuracies(predicted, labels))),
    )


def predictions(logits: np.ndarray) -> np.ndarray:
    """(N,) class of the largest logit, the lowest index among equals; -1 if a logit is NaN."""
    return np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))


def class_accuracies(predicted: np.ndarray, labels: np.ndarray, num_classes: int = 0) -> np.ndarray:
    """(C,) recall of each class; NaN for a class without images."""
    count = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, predicted == labels, num_classes)
    return np.divide(hits, count, out=np.full(len(count), np.nan), where=count > 0)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, float]:
    """(images only we get right, only they, p-value) of (N,) hits of two models.

    The exact two-sided test of equal accuracy (McNemar, 1947): which of the two is right on an
    image that only one gets right should be a fair coin.
    """
    only_ours, only_theirs = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    num = only_ours + only_theirs
    # scipy.stats.binomtest gives the same but for last bits, which results.json would show.
    p_value = min(1.0, 2 * float(bdtr(min(only_ours, only_theirs), num, 0.5))) if num else 1.0
    return only_ours, only_theirs, p_value


def pack_hits(hits: np.ndarray) -> str:
    """(N,) booleans as hexadecimal digits, the first the highest bit."""
    return np.packbits(hits).tobytes().hex()


def unpack_hits(digits: str) -> np.ndarray:
    """The booleans of `pack_hits`, filled up with False to a multiple of eight."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).astype(bool)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean of the F1 of all classes in `labels` or among the predictions."""
    classes = np.union1d(predicted, labels)
    hits = np.array([np.sum((predicted == c) & (labels == c)) for c in classes])
    total = np.array([np.sum(predicted == c) + np.sum(labels == c) for c in classes])
    return float(np.mean(2 * hits / total))


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the softmax, nats."""
    return float(-np.mean(log_softmax(logits)[np.arange(len(labels)), labels]))


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error over 15 equal-width bins of confidence (Guo et al., 2017)."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    if not np.isfinite(confidence).all():
        return float("nan")
    bins = bins_of(confidence)
    gaps = np.bincount(bins, (predictions(logits) == labels) - confidence, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """(N,) bins: bin b holds confidences in (b/15, (b+1)/15]."""
    bins: np.ndarray = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return bins


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) in float64; a row with a NaN or an infinite largest logit is NaN."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = wide - wide.max(axis=1, keepdims=True)
        result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
