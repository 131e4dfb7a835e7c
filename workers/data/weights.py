"""Weights of the classes in the loss."""

import difflib
import math

import numpy as np

from workers.spec import TrainSpec
from workers.types import UserError


def class_weights(
    spec: TrainSpec, labels: np.ndarray, classes: tuple[str, ...]
) -> np.ndarray | None:
    """float32 (C,) by class index, or None where all weigh the same.

    `balanced` is scikit-learn's: inverse to the frequency in `labels`, with a mean of 1 over the
    training images. A class without images weighs 1. Raises UserError for a class that does not
    exist and for a weight that is not above 0.
    """
    if spec.class_weights is None:
        return None
    weights = np.ones(len(classes), dtype=np.float32)
    if spec.class_weights == "balanced":  # its formula: importing scikit-learn takes seconds
        counts = np.bincount(labels, minlength=len(classes))
        present = counts > 0
        weights[present] = len(labels) / (present.sum() * counts[present])
    else:
        for name, weight in spec.class_weights.items():
            weights[_index(name, classes)] = _positive(name, weight)
    return weights


def _index(name: str, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(name)
    near = difflib.get_close_matches(name, classes, n=3, cutoff=0.4) or classes[:3]
    raise UserError(f"train.class_weights: there is no class {name!r}; nearest: {', '.join(near)}")


def _positive(name: str, weight: float) -> float:
    if weight > 0 and math.isfinite(weight):
        return weight
    raise UserError(f"train.class_weights: class {name!r} weighs {weight}; write a number above 0")
