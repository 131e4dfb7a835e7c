"""Evaluation pixels: every image decoded, resized and cropped once, kept as uint8."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from workers.data.augment import eval_transform
from workers.data.index import Images


def eval_pixels(
    images: Images, split: str, preprocessing: dict[str, Any], count: int | None = None
) -> torch.Tensor:
    """uint8 (N, 3, H, W) in split order, of the first `count` images if given.

    Kept in the memory of `images`; not to be written to.
    """
    num = images.count(split) if count is None else min(count, images.count(split))
    key = (split, json.dumps(preprocessing, sort_keys=True), num)
    if key not in images.pixels:
        # Runs of one experiment mostly share a preprocessing; keeping others would fill the memory.
        kept = {other: value for other, value in images.pixels.items() if other[1] == key[1]}
        images.pixels = kept | {key: _render(images, split, preprocessing, num)}
    pixels: torch.Tensor = images.pixels[key]
    return pixels


def normalise(pixels: torch.Tensor, preprocessing: dict[str, Any]) -> torch.Tensor:
    """uint8 (..., 3, H, W) -> float32, with the operations of torchvision's ToTensor and Normalize
    in their order, so that every bit is the same."""
    mean = torch.tensor(preprocessing["mean"], device=pixels.device).view(-1, 1, 1)
    std = torch.tensor(preprocessing["std"], device=pixels.device).view(-1, 1, 1)
    return pixels.to(torch.float32).div(255).sub_(mean).div_(std)


def _render(images: Images, split: str, preprocessing: dict[str, Any], num: int) -> torch.Tensor:
    transform = eval_transform(preprocessing, normalize=False)
    pixels = torch.empty((num, *preprocessing["input_size"]), dtype=torch.uint8)

    def render(i: int) -> None:
        pixels[i] = transform(images.image(split, i))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(render, range(num)):
            pass
    return pixels
