"""Images as training and evaluation see them: timm's and torchvision's transforms, in order.

    RGB image -> crop -> flips -> affine -> perspective -> policy -> colours -> uint8 [-> erasing]

All that is random draws from the global generators of random, numpy and torch, which the loader
seeds per sample.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybePILToTensor
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import Compose, InterpolationMode, v2

from workers.spec import TrainSpec
from workers.types import UserError

Transform = Callable[[Image.Image], torch.Tensor]

OP_SETS = ("tweights", "t3a", "t3aw")
"""Sections of a RandAugment policy that name a set of operations."""


def train_transform(spec: TrainSpec, preprocessing: dict[str, Any]) -> Transform:
    """RGB image -> uint8 (3, H, W); only with random erasing float32, normalised as `normalise`
    does it, for erasing fills with normal noise (Zhong et al., 2020).

    Unlike timm's own training, a policy does not silence `color_jitter`: both are asked for.
    Raises UserError for an unknown policy.
    """
    require_policy(spec)
    shape, colours, to_tensor = _timm_stages(spec, preprocessing)
    crop, *flips = shape.transforms
    crops = _center_crop(preprocessing) if spec.crop == "center" else [crop]
    warps = _warps(spec, preprocessing)
    return Compose([*crops, *flips, *warps, *colours.transforms, *to_tensor.transforms])


def require_policy(spec: TrainSpec) -> None:
    """Raise UserError when timm has no auto-augment policy `train.aa`, or would overlook part of
    it. Draws from the global generators."""
    if not spec.aa:
        return
    reason = _overlooked(spec.aa) or _broken(spec.aa)
    if reason:
        raise UserError(
            f"train.aa {spec.aa!r} is no auto-augment policy of timm ({reason}); "
            "write e.g. rand-m7-mstd0.5, augmix-m3-w3 or original"
        )


def eval_transform(preprocessing: dict[str, Any], normalize: bool = True) -> Compose:
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


def _timm_stages(spec: TrainSpec, preprocessing: dict[str, Any]) -> tuple[Compose, ...]:
    """timm's training transform in three: crop and flips, policy and colours, to a tensor."""
    return transforms_imagenet_train(
        img_size=tuple(preprocessing["input_size"][1:]),
        scale=None if spec.crop == "center" else spec.crop,
        hflip=spec.hflip,
        vflip=spec.vflip,
        color_jitter=spec.color_jitter,
        force_color_jitter=True,
        grayscale_prob=spec.grayscale,
        auto_augment=spec.aa,
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        re_prob=spec.reprob,
        re_mode="pixel",
        normalize=spec.reprob > 0,
        separate=True,
    )


def _center_crop(preprocessing: dict[str, Any]) -> list[Any]:
    """Evaluation's resize and crop, without its last step, to a tensor."""
    steps = eval_transform(preprocessing, normalize=False).transforms
    return [step for step in steps if not isinstance(step, MaybePILToTensor)]


def _warps(spec: TrainSpec, preprocessing: dict[str, Any]) -> list[Any]:
    """Bilinear, for bicubic takes Pillow far longer than all the rest; what lies outside the image
    takes the mean colour, as in timm's policies."""
    mean = [min(255, round(255 * mean)) for mean in preprocessing["mean"]]
    how = {"interpolation": InterpolationMode.BILINEAR, "fill": mean}
    warps = []
    if affine := spec.affine:
        shear = affine.shear or None
        warps.append(v2.RandomAffine(affine.degrees, affine.translate, affine.scale, shear, **how))
    if perspective := spec.perspective:
        warps.append(v2.RandomPerspective(perspective.distortion_scale, perspective.p, **how))
    return warps


def _overlooked(policy: str) -> str | None:
    """timm passes over a section without a number, and takes an unknown set for its own choice."""
    kind, *sections = policy.split("-")
    sets = OP_SETS if kind == "rand" else ()
    for section in sections:
        if section not in sets and not re.match(r"[a-su-z][a-z]*\d", section):
            return f"it does not read {section!r}"
    return None


def _broken(policy: str) -> str | None:
    """timm refuses some options when it makes the policy, others only when it applies it."""
    try:
        _, colours, _ = transforms_imagenet_train(auto_augment=policy, separate=True)
        colours(Image.new("RGB", (8, 8)))
    except (AssertionError, KeyError, ValueError) as error:
        return str(error) or "unknown"
    return None
