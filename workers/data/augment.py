"""timm's image transforms, for training and for evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform

from workers.spec import TrainSpec
from workers.types import UserError

Transform = Callable[[Image.Image], torch.Tensor]


def train_transform(spec: TrainSpec, preprocessing: dict[str, Any]) -> Transform:
    """RGB image -> float32 (3, H, W), normalised. Draws from the global generators of random,
    numpy and torch, which the loader seeds per sample."""
    try:
        return create_transform(
            input_size=tuple(preprocessing["input_size"]),
            is_training=True,
            scale=spec.crop,
            hflip=spec.hflip,
            color_jitter=spec.color_jitter,
            auto_augment=spec.aa,
            interpolation=preprocessing["interpolation"],
            mean=tuple(preprocessing["mean"]),
            std=tuple(preprocessing["std"]),
            re_prob=spec.reprob,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"train.aa {spec.aa!r} is no auto-augment policy of timm; "
            "write e.g. rand-m7-mstd0.5, augmix-m3-w3 or original"
        ) from error


def eval_transform(preprocessing: dict[str, Any], normalize: bool = True) -> Transform:
    """RGB image -> timm's evaluation resize and crop: float32 normalised, or uint8 (3, H, W)."""
    return create_transform(
        input_size=tuple(preprocessing["input_size"]),
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
        normalize=normalize,
    )
