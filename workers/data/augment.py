"""Augmentation and evaluation preprocessing: timm's and torchvision's transforms, in order.

    RGB image -> crop -> flips -> affine -> perspective -> policy -> colours -> uint8 [-> erasing]

Random steps draw from the global generators of random, numpy and torch, which the loader seeds per
sample.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_train
from torch.nn.functional import interpolate
from torchvision.transforms import Compose, InterpolationMode, v2
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from workers.config.train import TrainConfig
from workers.errors import UserError

Picture = Image.Image | torch.Tensor
"""An RGB image: of Pillow, or uint8 (3, H, W)."""
Transform = Callable[[Picture], torch.Tensor]

INTERPOLATIONS = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}
"""Filters that torch can apply to bytes, and its names for them."""

OP_SETS = ("tweights", "t3a", "t3aw")
"""Parts of a RandAugment policy that name a set of operations."""


def train_transform(spec: TrainConfig, preprocessing: dict[str, Any]) -> Transform:
    """Training transform: Picture -> uint8 (3, H, W).

    With random erasing the result is float32, normalised as by `normalise`, because erasing fills
    with normal noise (Zhong et al., 2020). Unlike in timm's training, a policy does not turn
    `color_jitter` off. Raises UserError for an unknown policy.
    """
    require_policy(spec)
    shape, colours, to_tensor = _timm_stages(spec, preprocessing)
    crop, *flips = shape.transforms
    if spec.crop == "center":
        crops = [_to_pillow, *_center_crop(preprocessing)]
    else:
        crops = [RandomCrop(crop)] if crop.interpolation in INTERPOLATIONS else [_to_pillow, crop]
    later = [*_warps(spec, preprocessing), *colours.transforms]
    # Erasing follows a ToTensor, which converts only Pillow images to floats.
    pillow = [_to_pillow] if later or spec.reprob else []
    return Compose([*crops, *flips, *pillow, *later, *to_tensor.transforms])


class RandomCrop:
    """timm's random resized crop with torch's resize of bytes.

    It takes a third of Pillow's time. Rounding differs by at most a few of 255 levels.
    """

    def __init__(self, timms: RandomResizedCropAndInterpolation) -> None:
        self._timms, self._filter = timms, INTERPOLATIONS[timms.interpolation]

    def __call__(self, image: Picture) -> torch.Tensor:
        x = image if isinstance(image, torch.Tensor) else pil_to_tensor(image)
        top, left, height, width = self._timms.get_params(x, self._timms.scale, self._timms.ratio)
        box = x[None, :, top : top + height, left : left + width]
        return interpolate(box, self._timms.size, mode=self._filter, antialias=True)[0]


def _to_pillow(image: Picture) -> Image.Image:
    return to_pil_image(image) if isinstance(image, torch.Tensor) else image


def require_policy(spec: TrainConfig) -> None:
    """Raise UserError if timm has no auto-augment policy `train.aa`, or ignores a part of it.

    Draws from the global generators.
    """
    if not spec.aa:
        return
    reason = _ignored_section(spec.aa) or _policy_error(spec.aa)
    if reason:
        raise UserError(
            f"train.aa {spec.aa!r} is no auto-augment policy of timm ({reason}); "
            "write e.g. rand-m7-mstd0.5, augmix-m3-w3 or original"
        )


def eval_transform(preprocessing: dict[str, Any], normalize: bool = True) -> Compose:
    """timm's evaluation resize and crop: RGB image -> normalised float32, or uint8 (3, H, W)."""
    return create_transform(
        input_size=tuple(preprocessing["input_size"]),
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
        normalize=normalize,
    )


def _timm_stages(spec: TrainConfig, preprocessing: dict[str, Any]) -> tuple[Compose, ...]:
    """Three parts of timm's training transform: crop and flips, policy and colours, to a tensor."""
    shape, colours, to_tensor = transforms_imagenet_train(
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
    _keep_one_bit(colours)
    return shape, colours, to_tensor


def _keep_one_bit(colours: Compose) -> None:
    """Limit timm's posterize, whose strongest level keeps 0 bits, which Pillow 13 refuses."""
    for step in colours.transforms:
        for operation in _operations(step):
            if operation.name.startswith("Posterize"):
                operation.level_fn = partial(_one_bit_or_more, operation.level_fn)


def _operations(step: Any) -> Iterable[Any]:
    """Operations of one of timm's policies. Other transforms have none."""
    return chain(getattr(step, "ops", ()), *getattr(step, "policy", ()))


def _one_bit_or_more(level_fn: Callable[..., tuple[int]], *level: Any) -> tuple[int]:
    """timm's argument for a level of posterize, but 1 bit instead of 0."""
    return (max(1, level_fn(*level)[0]),)


def _center_crop(preprocessing: dict[str, Any]) -> list[Any]:
    """Resize and crop of evaluation, without the conversion to a tensor."""
    steps = eval_transform(preprocessing, normalize=False).transforms
    return [step for step in steps if not isinstance(step, MaybePILToTensor)]


def _warps(spec: TrainConfig, preprocessing: dict[str, Any]) -> list[Any]:
    """Random affine and perspective warps, filled with the mean colour as in timm's policies.

    They are bilinear, because bicubic warps take Pillow longer than all other steps.
    """
    mean = [min(255, round(255 * mean)) for mean in preprocessing["mean"]]
    how = {"interpolation": InterpolationMode.BILINEAR, "fill": mean}
    warps = []
    if affine := spec.affine:
        shear = affine.shear or None
        warps.append(v2.RandomAffine(affine.degrees, affine.translate, affine.scale, shear, **how))
    if perspective := spec.perspective:
        warps.append(v2.RandomPerspective(perspective.distortion_scale, perspective.p, **how))
    return warps


def _ignored_section(policy: str) -> str | None:
    """Reason why timm would ignore a part of the policy: no number, or an unknown set."""
    kind, *sections = policy.split("-")
    sets = OP_SETS if kind == "rand" else ()
    for section in sections:
        if section not in sets and not re.match(r"[a-su-z][a-z]*\d", section):
            return f"it does not read {section!r}"
    return None


def _policy_error(policy: str) -> str | None:
    """Error of timm from building the policy and applying it once."""
    try:
        _, colours, _ = transforms_imagenet_train(auto_augment=policy, separate=True)
        _keep_one_bit(colours)
        colours(Image.new("RGB", (8, 8)))
    except (AssertionError, KeyError, ValueError) as error:
        return str(error) or "unknown"
    return None
