"""The loss a run minimises: cross-entropy with smoothing, soft targets and class weights."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.config.train import TrainConfig
from workers.errors import UserError, similar_names


class LossModule(nn.Module):
    """(images, labels or soft targets (B, C)) -> mean cross-entropy.

    Class weights multiply and are not divided out again, so that micro-batches add up to the step.
    Accelerate wraps and patches this module, not the network inside, which so keeps its names in
    checkpoints and its precision in evaluation.
    """

    class_weights: Tensor | None

    def __init__(self, net: nn.Module, smoothing: float, weights: np.ndarray | None = None) -> None:
        super().__init__()
        self.net = net
        self.smoothing = smoothing
        tensor = None if weights is None else torch.from_numpy(weights)
        self.register_buffer("class_weights", tensor, persistent=False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self.net(images).float()
        total = functional.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.smoothing,
            reduction="sum",
        )
        return total / len(logits)


def class_weights(
    spec: TrainConfig, labels: np.ndarray, classes: tuple[str, ...]
) -> np.ndarray | None:
    """float32 (C,) by class index. None: all weigh the same.

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
    near = similar_names(name, classes) or classes[:3]
    raise UserError(f"train.class_weights: there is no class {name!r}; nearest: {', '.join(near)}")


def _positive(name: str, weight: float) -> float:
    if weight > 0 and math.isfinite(weight):
        return weight
    raise UserError(f"train.class_weights: class {name!r} weighs {weight}; write a number above 0")
