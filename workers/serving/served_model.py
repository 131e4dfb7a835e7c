"""Served models: logits and scores of a folder that plain timm loads, on files and class folders.

model folder -> timm -> network, preprocessing, labels
class folders, matched to the labels by name -> pixels, block by block -> logits -> Score
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from workers.config.data import DataConfig
from workers.context import cuda_is_available
from workers.data.augment import eval_transform
from workers.data.decode import decode, decoding_fault
from workers.data.sources import EXTENSIONS, class_folders, image_files
from workers.errors import UserError, did_you_mean, first_line
from workers.models.build import preprocessing
from workers.models.pretrained import WEIGHT_READ_ERRORS
from workers.scoring.forward import EVAL_BATCH, logits
from workers.scoring.metrics import score
from workers.types import Score

IMAGES_IN_MEMORY = 8 * EVAL_BATCH
"""Images in memory at a time: whole batches, so that logits do not depend on the block."""


class ServedModel:
    """A network in eval mode, on a GPU if there is one, with its preprocessing and labels."""

    def __init__(self, folder: Path) -> None:
        """Load a folder that plain timm loads. Raises UserError for another folder."""
        self.model, self.preprocessing, self.labels = open_served(folder)
        self.device = "cuda" if cuda_is_available() else "cpu"
        self.model.to(self.device)
        self._transform = eval_transform(self.preprocessing, normalize=False)

    def logits(
        self, files: Sequence[Path], on_image: Callable[[], object] = lambda: None
    ) -> np.ndarray:
        """float32 (N, C). A row of NaN for a file that does not decode."""
        rows = [np.zeros((0, len(self.labels)), np.float32)]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for start in range(0, len(files), IMAGES_IN_MEMORY):
                pixels = list(pool.map(self._pixels, files[start : start + IMAGES_IN_MEMORY]))
                rows.append(self._forward(pixels, on_image))
        return np.concatenate(rows)

    def _pixels(self, file: Path) -> Tensor | None:
        """uint8 (3, H, W)"""
        try:
            return self._transform(decode(file.read_bytes()))
        except OSError:
            return None

    def _forward(self, pixels: list[Tensor | None], on_image: Callable[[], object]) -> np.ndarray:
        decoded = [i for i, image in enumerate(pixels) if image is not None]
        result = np.full((len(pixels), len(self.labels)), np.nan, np.float32)
        if decoded:
            batch = torch.stack([image for image in pixels if image is not None])
            result[decoded] = logits(self.model, batch, self.preprocessing, self.device)
        for _ in pixels:
            on_image()
        return result


def evaluate_folder(model_dir: Path, data: Path) -> Score:
    """Metrics of the model on all images in the class folders of `data`.

    Class folders are matched to the model's labels by name. Labels may lack a folder.

    Raises:
        UserError: the folder is no model, a class folder is missing, unknown or empty, or an image
            does not decode.
    """
    served = ServedModel(model_dir)
    images = list(_images(data, served.labels))
    rows = served.logits([file for file, _ in images])
    for (file, _), broken in zip(images, np.isnan(rows).all(axis=1), strict=True):
        if broken:
            fault = decoding_fault(file.read_bytes())
            raise UserError(f"image {file} does not decode ({fault}); replace it, or move it away")
    return score(rows, np.array([label for _, label in images], dtype=np.int64))


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
    hint = did_you_mean(name, labels) or f"its labels are {', '.join(labels)}"
    raise UserError(
        f"--data {data} has a class folder {name!r}, but the model has no such label; "
        f"rename the folder, or move it away ({hint})"
    )


def _files(folder: Path) -> list[Path]:
    files = image_files(folder)
    if not files:
        raise UserError(
            f"class folder {folder} holds no images ({', '.join(EXTENSIONS)}); fill or remove it"
        )
    return files


def open_served(folder: Path) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """(network in eval mode, evaluation preprocessing, label names) of a folder that plain timm
    loads, such as a served soup/. Raises UserError for another folder."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}, so it is no model; give a served folder, as in "
                "runs/quickstart/soup"
            )
    try:
        model = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True)
    except WEIGHT_READ_ERRORS as error:
        raise UserError(
            f"the model in {folder} cannot be loaded ({first_line(error)}); copy or make it again"
        ) from error
    config: dict[str, Any] = model.pretrained_cfg
    labels = tuple(config.get("label_names") or ())
    if len(labels) != model.num_classes:
        raise UserError(
            f"{folder}/config.json names {len(labels)} labels for {model.num_classes} outputs; "
            "write label_names, one for each output, into it"
        )
    return model.eval(), preprocessing(model, DataConfig()), labels
