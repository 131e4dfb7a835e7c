"""MixUp and CutMix: mixing the images of a micro-batch, after augmentation, on the device."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from workers.config.train import TrainConfig


class Mixing:
    """torchvision's MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019), with timm's options.

    A micro-batch is mixed with probability `mixup_prob`, before `mixup_off_epoch`. If both are on,
    it is CutMix with probability `mixup_switch_prob`. Draws only from torch's global CPU generator,
    which the caller seeds.
    """

    def __init__(self, spec: TrainConfig, num_classes: int) -> None:
        self.spec = spec
        self._mixup = v2.MixUp(alpha=spec.mixup, num_classes=num_classes) if spec.mixup else None
        self._cutmix = (
            v2.CutMix(alpha=spec.cutmix, num_classes=num_classes) if spec.cutmix else None
        )

    def off_at(self, epoch: int) -> bool:
        """Whether this epoch mixes nothing."""
        return not self.spec.mixes or 0 < self.spec.mixup_off_epoch <= epoch

    def mix(self, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mixed images and targets: float32 (B, 3, H, W) and int64 (B,) -> the same shape and
        float32 (B, C). `x` and `y` are returned if nothing is mixed, and never written to."""
        if self.off_at(epoch) or _draw() >= self.spec.mixup_prob:
            return x, y
        assert len(x) > 1, "one image alone cannot be mixed; a micro-batch holds two or more"
        mixed: tuple[Tensor, Tensor] = self._choose()(x, y)
        return mixed

    def _choose(self) -> v2.Transform:
        if self._mixup and self._cutmix:
            return self._cutmix if _draw() < self.spec.mixup_switch_prob else self._mixup
        return self._mixup or self._cutmix


def _draw() -> float:
    return float(torch.rand(()))
