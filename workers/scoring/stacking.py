"""Stacking: a linear classifier on the concatenated logits of several models (Wolpert, 1992).

    logits of the groups on images that no member was trained on -> fit -> Stacker

A group is one setting: a single model, or the mean logits of members with different held-out folds.
There are often fewer images than weights, so the penalty pulls the classifier towards soft voting
at its best temperature, not towards zero. Cross-validation chooses its strength.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save
from scipy.optimize import minimize, minimize_scalar

from workers.scoring.metrics import log_softmax, nll

PENALTIES = 10.0 ** np.arange(-4, 3)
"""Candidates: nats per image and squared distance from soft voting, for features of unit scale."""
PARTS = 5
"""Parts of the cross-validation that chooses the penalty."""


@dataclass(frozen=True)
class Stacker:
    """logits = weight @ concatenated + bias."""

    weight: np.ndarray
    """float64 (C, G * C)."""
    bias: np.ndarray
    """float64 (C,)"""

    def __call__(self, blocks: Sequence[np.ndarray]) -> np.ndarray:
        """float64 (N, C) logits from the (N, C) logits of every group."""
        result: np.ndarray = np.concatenate(blocks, axis=1) @ self.weight.T + self.bias
        return result

    def to_bytes(self) -> bytes:
        """The content of its safetensors file."""
        # safetensors writes memory in its order and ignores strides.
        tensors = {name: np.ascontiguousarray(value) for name, value in vars(self).items()}
        content: bytes = save(tensors, {"format": "pt"})
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> "Stacker":
        tensors = load(content)
        return cls(tensors["weight"], tensors["bias"])


def fit(blocks: Sequence[np.ndarray], labels: np.ndarray) -> Stacker:
    """The classifier that predicts `labels`, int64 (N,), from the (N, C) logits of every group.

    Logits are defined up to a constant per image and a temperature per model, so they are centred
    and scaled to unit variance for the fit; both are folded into the weights. Deterministic.
    """
    scales = [_scale(block) for block in blocks]
    features = np.concatenate(
        [_centred(block) / scale for block, scale in zip(blocks, scales, strict=True)], axis=1
    )
    weight, bias = _fitted(features, labels, _penalty(features, labels, len(blocks)), len(blocks))
    parts = zip(np.split(weight, len(blocks), axis=1), scales, strict=True)
    return Stacker(np.concatenate([_centred(part) / scale for part, scale in parts], axis=1), bias)


def _centred(rows: np.ndarray) -> np.ndarray:
    """Rows minus their mean. The projection is symmetric, so weights are centred the same way."""
    wide = rows.astype(np.float64)
    result: np.ndarray = wide - wide.mean(axis=1, keepdims=True)
    return result


def _scale(block: np.ndarray) -> float:
    return float(_centred(block).std()) or 1.0


def _penalty(features: np.ndarray, labels: np.ndarray, groups: int) -> float:
    """The penalty with the smallest cross-validated negative log-likelihood."""
    if len(labels) < PARTS:
        return float(PENALTIES[-1])
    part = np.random.default_rng(0).permutation(len(labels)) % PARTS

    def loss(penalty: float, held_out: int) -> float:
        is_held = part == held_out
        weight, bias = _fitted(features[~is_held], labels[~is_held], penalty, groups)
        return nll(features[is_held] @ weight.T + bias, labels[is_held]) * float(is_held.sum())

    losses = [sum(loss(penalty, k) for k in range(PARTS)) for penalty in PENALTIES]
    return float(PENALTIES[int(np.argmin(losses))])


def _fitted(
    features: np.ndarray, labels: np.ndarray, penalty: float, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weight (C, G * C), bias (C,)): multinomial logistic regression around soft voting."""
    num_classes = features.shape[1] // groups
    prior = _soft_voting(features, labels, groups)
    targets = np.eye(num_classes)[labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = _unpacked(flat, num_classes)
        logits = features @ weight.T + bias
        errors = (np.exp(log_softmax(logits)) - targets) / len(labels)
        offset = np.concatenate([weight - prior, bias[:, None]], axis=1)
        gradient = np.concatenate([errors.T @ features, errors.sum(0)[:, None]], axis=1)
        loss = nll(logits, labels) + penalty * float((offset**2).sum()) / 2
        return loss, (gradient + penalty * offset).ravel()

    start = np.concatenate([prior, np.zeros((num_classes, 1))], axis=1).ravel()
    best = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return _unpacked(best.x, num_classes)


def _unpacked(flat: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    both = flat.reshape(num_classes, -1)
    return both[:, :-1], both[:, -1]


def _soft_voting(features: np.ndarray, labels: np.ndarray, groups: int) -> np.ndarray:
    """(C, G * C): the mean of the groups, at the temperature that fits the labels best."""
    num_classes = features.shape[1] // groups
    mean = np.concatenate([np.eye(num_classes) / groups] * groups, axis=1)
    votes = features @ mean.T
    best = minimize_scalar(
        lambda log_scale: nll(votes * np.exp(log_scale), labels), bounds=(-5, 5), method="bounded"
    )
    return mean * float(np.exp(best.x))
