"""Augmentation: bit for bit timm's and torchvision's transforms, in the documented order."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from pydantic import ValidationError
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from tests.workers.data.augmentations import POLICIES, PREPROCESSING, pictures, specs
from workers.config.train import AffineConfig, PerspectiveConfig, TrainConfig
from workers.data import normalise, require_policy, train_transform
from workers.data.augment import RandomCrop, eval_transform
from workers.errors import UserError

STILL: dict[str, Any] = {"crop": "center", "hflip": 0}
"""Options without any random step."""
IDENTITY = PREPROCESSING | {"crop_pct": 1.0}
"""Preprocessing that, with STILL, leaves an image of 24 x 24 pixels unchanged."""


def _seeded(transform: Callable[[Image.Image], Any], image: Image.Image, seed: int) -> Any:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(image)


def _timm(spec: TrainConfig) -> Callable[[Image.Image], torch.Tensor]:
    """timm's training transform of the same options, with our crop."""
    transform = create_transform(
        input_size=tuple(PREPROCESSING["input_size"]),
        is_training=True,
        scale=spec.crop,
        hflip=spec.hflip,
        vflip=spec.vflip,
        color_jitter=spec.color_jitter,
        grayscale_prob=spec.grayscale,
        auto_augment=spec.aa,
        interpolation=PREPROCESSING["interpolation"],
        mean=tuple(PREPROCESSING["mean"]),
        std=tuple(PREPROCESSING["std"]),
        re_prob=spec.reprob,
        re_mode="pixel",
    )
    crop = RandomCrop(transform.transforms[0])
    transform.transforms[0] = lambda image: to_pil_image(crop(image))
    return transform


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_crop_is_timms_except_for_rounding(interpolation: str) -> None:
    theirs = RandomResizedCropAndInterpolation(24, (0.35, 1.0), interpolation=interpolation)
    for seed, image in enumerate(pictures()):
        ours = _seeded(RandomCrop(theirs), image, seed).permute(1, 2, 0).numpy().astype(int)
        levels = abs(ours - np.asarray(_seeded(theirs, image, seed)))
        assert levels.max() <= 3 and levels.mean() < 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop": (0.08, 1.0), "vflip": 0.5, "color_jitter": 0.4, "grayscale": 0.3},
        {"color_jitter": 0.4, "reprob": 0.5},
        *({"aa": policy} for policy in POLICIES),
        {"aa": "3a", "color_jitter": 0.3, "reprob": 1.0},
    ],
    ids=str,
)
def test_options_of_timm_give_timms_bits(options: dict[str, Any]) -> None:
    spec = TrainConfig(**options)
    ours, theirs = train_transform(spec, PREPROCESSING), _timm(spec)
    for seed, image in enumerate(pictures()):
        x = _seeded(ours, image, seed)
        assert x.dtype == (torch.float32 if spec.reprob else torch.uint8)
        x = x if spec.reprob else normalise(x, PREPROCESSING)
        assert torch.equal(x, _seeded(theirs, image, seed))


def test_erasing_is_timms_on_normalised_images() -> None:
    image = pictures(1, 24, 24)[0]
    still = train_transform(TrainConfig(**STILL), IDENTITY)(image)
    erased = train_transform(TrainConfig(**STILL, reprob=1.0), IDENTITY)
    timms = RandomErasing(1.0, mode="pixel", device="cpu")
    for seed in range(5):
        expected = _seeded(lambda _: timms(normalise(still, IDENTITY)), image, seed)
        assert torch.equal(_seeded(erased, image, seed), expected)
        assert not torch.equal(expected, normalise(still, IDENTITY))


def test_centre_crop_is_that_of_evaluation() -> None:
    for mode in ("center", "squash", "border"):
        preprocessing = PREPROCESSING | {"crop_mode": mode}
        training = train_transform(TrainConfig(**STILL), preprocessing)
        evaluation = eval_transform(preprocessing, normalize=False)
        for image in pictures():
            assert torch.equal(training(image), evaluation(image))


@pytest.mark.parametrize(
    "options",
    [
        {"crop": (0.2, 0.6)},
        {"hflip": 1},
        {"vflip": 1},
        {"affine": AffineConfig(degrees=45)},
        {"affine": AffineConfig(translate=(0.4, 0.4))},
        {"affine": AffineConfig(scale=(0.4, 0.6))},
        {"affine": AffineConfig(shear=40)},
        {"perspective": PerspectiveConfig(p=1)},
        {"color_jitter": 0.5},
        {"grayscale": 1},
        {"aa": "rand-m9-p1"},
        {"aa": "augmix-m9"},
        {"reprob": 1},
    ],
    ids=str,
)
def test_every_operation_changes_the_image_and_keeps_its_shape(options: dict[str, Any]) -> None:
    image = pictures(1, 24, 24)[0]
    still = train_transform(TrainConfig(**STILL), IDENTITY)(image)
    assert np.array_equal(still.permute(1, 2, 0).numpy(), np.asarray(image))
    transform = train_transform(TrainConfig(**(STILL | options)), IDENTITY)
    changed = [_seeded(transform, image, seed) for seed in range(4)]
    if "reprob" in options:
        still = normalise(still, IDENTITY)
    assert all(x.shape == still.shape and x.dtype == still.dtype for x in changed)
    assert sum(not torch.equal(x, still) for x in changed) >= 3


def test_warps_are_torchvisions_and_fill_with_the_mean_colour() -> None:
    image = pictures(1, 24, 24)[0]
    colour = [124, 116, 104]
    affine = AffineConfig(degrees=30, translate=(0.2, 0.1), scale=(0.5, 0.9), shear=20)
    cases = {
        "affine": v2.RandomAffine(30, (0.2, 0.1), (0.5, 0.9), 20, 2, colour),
        "perspective": v2.RandomPerspective(0.8, 1.0, 2, colour),
    }
    options = {"affine": affine, "perspective": PerspectiveConfig(distortion_scale=0.8, p=1)}
    plain = Image.new("RGB", (24, 24), tuple(colour))
    for name, theirs in cases.items():
        ours = train_transform(TrainConfig(**STILL, **{name: options[name]}), IDENTITY)
        for seed in range(5):
            x = _seeded(ours, image, seed).permute(1, 2, 0).numpy()
            assert np.array_equal(x, np.asarray(_seeded(theirs, image, seed)))
            assert (_seeded(ours, plain, seed) == torch.tensor(colour)[:, None, None]).all()


def test_grayscale_comes_after_all_colours() -> None:
    spec = TrainConfig(aa="rand-m9", color_jitter=0.9, grayscale=1, affine=AffineConfig(degrees=9))
    red, green, blue = _seeded(train_transform(spec, PREPROCESSING), pictures(1)[0], 0)
    assert torch.equal(red, green) and torch.equal(green, blue)


def test_a_policy_does_not_turn_colour_jitter_off() -> None:
    transform = train_transform(TrainConfig(**STILL, aa="rand-n0", color_jitter=0.5), IDENTITY)
    image = pictures(1, 24, 24)[0]
    assert not torch.equal(_seeded(transform, image, 0), _seeded(transform, image, 1))


@settings(max_examples=60, deadline=None)
@given(spec=specs())
def test_any_augmentation_gives_an_image_that_only_depends_on_the_seed(spec: TrainConfig) -> None:
    transform, again = (train_transform(spec, PREPROCESSING) for _ in range(2))
    image = pictures(1)[0]
    before = image.tobytes()
    x = _seeded(transform, image, 1)
    assert x.shape == (3, 24, 24) and x.isfinite().all()
    _seeded(transform, image, 2)
    assert torch.equal(_seeded(transform, image, 1), x)
    assert torch.equal(_seeded(again, image, 1), x)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    "policy",
    [
        *("nonsense", "random", "rand-m9-q2", "rand-m9.5", "rand-mstd1.2.3", "v1", "RAND-m3"),
        # timm accepts these policies, but ignores a part or fails at the first image.
        *("rand-inc", "rand-tfoo", "rand--m3", "augmix-tweights", "augmix-a0", "original-mstd"),
        "rand-n20-tweights",
    ],
)
def test_an_unknown_augmentation_policy_is_a_users_mistake(policy: str) -> None:
    spec = TrainConfig(aa=policy)
    for check in (require_policy, lambda spec: train_transform(spec, PREPROCESSING)):
        with pytest.raises(UserError, match=f"train.aa '{policy}'.*write e.g."):
            check(spec)


def test_policies_of_timm_pass() -> None:
    for policy in (*POLICIES, None, "rand", "augmix", "rand-m9-mstd0.5-inc1-p0.3"):
        require_policy(TrainConfig(aa=policy))


def test_a_valid_policy_passes_whatever_it_draws() -> None:
    for seed in range(300):
        random.seed(seed)
        np.random.seed(seed)
        require_policy(TrainConfig(aa="rand-m12-mmax15-t3aw"))


def test_affine_ranges_are_checked_with_the_configuration() -> None:
    for options in ({"translate": (0.1, 1.5)}, {"scale": (1.2, 0.8)}, {"scale": (0, 1)}):
        with pytest.raises(ValidationError):
            AffineConfig(**options)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "v0", "rand-m10-n4"])
def test_the_strongest_posterizing_leaves_a_bit(policy: str) -> None:
    """Pillow 13 refuses 0 bits, which one image in a hundred would get."""
    transform = train_transform(TrainConfig(aa=policy), PREPROCESSING)
    for seed in range(300):
        assert _seeded(transform, pictures(1)[0], seed).shape == (3, 24, 24)
