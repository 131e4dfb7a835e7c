"""Small images, a preprocessing, and strategies for all augmentations of a configuration."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from workers.config.train import AffineConfig, PerspectiveConfig, TrainConfig

PREPROCESSING: dict[str, Any] = {
    "input_size": [3, 24, 24],
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crop_pct": 0.9,
    "crop_mode": "center",
}

POLICIES = (
    "rand-m9-mstd0.5-inc1",
    "rand-m7-n3-tweights-mstd101",
    "rand-m12-mmax15-t3aw",
    "augmix-m3-w3",
    "augmix-m5-w2-d2-b1-mstd0.5",
    "original-mstd0.5",
    "originalr",
    "v0",
    "v0r",
    "3a",
)


class Pictures(list[Image.Image]):
    """Training pixels in memory, in place of those of the cache."""

    def tensor(self, i: int) -> torch.Tensor:
        return pil_to_tensor(self[i])


def pictures(num: int = 8, width: int = 40, height: int = 32) -> Pictures:
    """Images of smooth coloured noise, all different."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (num, 6, 7, 3), dtype=np.uint8)
    return Pictures(
        Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC) for grid in grids
    )


def _affines() -> st.SearchStrategy[AffineConfig]:
    return st.builds(
        AffineConfig,
        degrees=st.sampled_from([0.0, 15.0, 180.0]),
        translate=st.sampled_from([None, (0.1, 0.3)]),
        scale=st.sampled_from([None, (0.8, 1.2)]),
        shear=st.sampled_from([0.0, 10.0]),
    )


def specs() -> st.SearchStrategy[TrainConfig]:
    probability = st.sampled_from([0.0, 0.5, 1.0])
    return st.builds(
        TrainConfig,
        crop=st.sampled_from(["center", (0.35, 1.0), (0.08, 0.5)]),
        hflip=probability,
        vflip=probability,
        affine=st.none() | _affines(),
        perspective=st.none() | st.builds(PerspectiveConfig, distortion_scale=probability),
        aa=st.none() | st.sampled_from(POLICIES),
        color_jitter=st.sampled_from([None, 0.0, 0.4, 1.5]),
        grayscale=probability,
        reprob=probability,
    )
