"""A served model at work: score a folder that plain timm loads, on class folders of images.

model folder -> timm -> network, preprocessing, labels
class folders, matched to the labels by name -> pixels, block by block -> logits -> Score
"""

import difflib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.data.augment import Transform, eval_transform
from workers.data.decode import UNDECODABLE, decode
from workers.data.sources import EXTENSIONS, class_folders, image_files
from workers.devices import cuda_is_available
from workers.evaluate import EVAL_BATCH, logits
from workers.metrics import score
from workers.model import open_served
from workers.types import Score, UserError

BLOCK = 8 * EVAL_BATCH
"""Images in memory at a time; whole batches, so that the cuts change no bit of any logit."""


def evaluate_folder(model_dir: Path, data: Path) -> Score:
    """Metrics of the model on all images in the class folders of `data`.

    Class folders are matched to the model's labels by name; labels without a folder are fine.

    Raises:
        UserError: a folder that is no model; a missing, unknown or empty class folder; an image
            that does not decode.
    """
    model, preprocessing, labels = open_served(model_dir)
    found = list(_images(data, labels))
    transform = eval_transform(preprocessing, normalize=False)
    device = "cuda" if cuda_is_available() else "cpu"
    model.to(device)
    blocks = (found[start : start + BLOCK] for start in range(0, len(found), BLOCK))
    rows = [logits(model, _pixels(block, transform), preprocessing, device) for block in blocks]
    return score(np.concatenate(rows), np.array([label for _, label in found], dtype=np.int64))


def _images(data: Path, labels: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """Every image with its label."""
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder; give a folder of class folders")
    names = class_folders(data)
    if not names:
        raise UserError(
            f"--data {data} has no class folders; put the images into folders named like the "
            f"model's labels, as in {data / labels[0]}"
        )
    for name in names:
        yield from ((file, _label(name, data, labels)) for file in _files(data / name))


def _label(name: str, data: Path, labels: tuple[str, ...]) -> int:
    if name in labels:
        return labels.index(name)
    near = difflib.get_close_matches(name, labels, n=1, cutoff=0.0)
    raise UserError(
        f"--data {data} has a class folder {name!r}, but the model has no such label; "
        f"the nearest is {near[0]!r}: rename the folder, or move it away"
    )


def _files(folder: Path) -> list[Path]:
    files = image_files(folder)
    if not files:
        raise UserError(
            f"class folder {folder} holds no images ({', '.join(EXTENSIONS)}); fill or remove it"
        )
    return files


def _pixels(block: list[tuple[Path, int]], transform: Transform) -> Tensor:
    """uint8 (N, 3, H, W)"""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return torch.stack(list(pool.map(lambda each: transform(_decoded(each[0])), block)))


def _decoded(path: Path) -> Image.Image:
    try:
        return decode(path.read_bytes())
    except UNDECODABLE as error:
        raise UserError(
            f"image {path} does not decode ({error}); replace it, or move it away"
        ) from error
