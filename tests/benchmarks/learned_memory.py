"""Memory of the recipes that learn weights, against a plain backward pass of one such model.

    python -m tests.benchmarks.learned_memory [--model vit_base_patch16_224] [--count 8]

The plain pass is the lower bound: weights, their gradients and the activations of a batch, so two
models and a batch. `question` answers a gradient question over all members. `learned` and `mehl`
are the whole verb `soup`, from files to served soup and report. Each has a process of its own, and
counts the peak of anonymous memory above that of its imports. Images are few and tiny, so that
models dominate.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import plotly.offline
import scipy.optimize
import sklearn.manifold
import torch
from torch import Tensor

from orchestrator.commands.soup import SoupRequest, make_soups
from tests.benchmarks.memory import PeakAnonymous
from tests.image_folders import write_classes
from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.context import WorkerContext
from workers.data import Images, eval_pixels, normalise, scan
from workers.merging.gradient import measure_gradient
from workers.models.build import create_model, preprocessing
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.layout import WEIGHTS, checkpoint_dir
from workers.storage.manifest import read_manifest
from workers.storage.store import Store
from workers.types import (
    SELECTION,
    Checkpoint,
    Cohort,
    GradientOrder,
    Mix,
    MixGradient,
    WorkerConfig,
)

LIBRARIES = (plotly.offline, scipy.optimize, sklearn.manifold)
"""Imported late by analysis and report; imported here so that their code is not measured."""

CLASSES = {"cat": 32, "dog": 32}
SIZE = 32
"""Pixels of the images."""


@dataclass(frozen=True)
class Scene:
    """Files on disk for every process: images, and `count` checkpoints near one random network."""

    root: str
    model: str
    count: int
    batch: int

    @property
    def data(self) -> DataConfig:
        folders: dict[str, Any] = {"root": f"{self.root}/images", "train": {}}
        return DataConfig(**folders, val="val", test="test", image_size=SIZE)

    @property
    def store(self) -> Store:
        return Store(f"{self.root}/store")

    @property
    def ids(self) -> list[str]:
        return [f"run{i}/00000001-0" for i in range(self.count)]


def measure(
    model: str = "vit_base_patch16_224", count: int = 8, batch: int = 16, folder: str | None = None
) -> dict[str, float]:
    """Peak memory in models, and as ratios to the plain pass."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        scene = Scene(root, model, count, batch)
        size = _in_new_process(_prepare, scene)
        peaks = {
            "plain": _in_new_process(_plain, scene),
            "question": _in_new_process(_question, scene),
            "learned": _in_new_process(_learned, scene),
            "mehl": _in_new_process(_mehl, scene),
        }
    models = {f"{name}_models": peak / size for name, peak in peaks.items()}
    ratios = {f"{name}_ratio": peak / peaks["plain"] for name, peak in peaks.items()}
    return {"count": count, "mib": size / 2**20, **models, **ratios}


def _in_new_process(part: Callable[[Scene], int], scene: Scene) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(part, scene).result()


def _prepare(scene: Scene) -> int:
    """Write images and members; returns the bytes of a member."""
    for seed, split in enumerate(("val", "test")):
        write_classes(Path(scene.root, "images", split), CLASSES, seed, (SIZE, SIZE))
    scan(scene.data, seed=0)[0].save(scene.store)
    start = _network(scene).state_dict()
    for i, id_ in enumerate(scene.ids):
        torch.manual_seed(i)
        tensors = {key: _nearby(tensor) for key, tensor in start.items()}
        write_checkpoint(scene.store, id_.rpartition("-")[0], 0, 1, tensors)
    return sum(tensor.nbytes for tensor in start.values())


def _network(scene: Scene) -> torch.nn.Module:
    return create_model(ModelConfig(name=scene.model), len(CLASSES), scene.data)


def _nearby(tensor: Tensor) -> Tensor:
    return tensor + 1e-3 * torch.randn_like(tensor) if tensor.ndim > 1 else tensor


def _plain(scene: Scene) -> int:
    """Peak of a training step without its optimizer."""
    torch.set_num_threads(1)
    images = Images.load(scene.store, scene.data)
    with PeakAnonymous() as peak:
        model = _network(scene).eval()
        config = preprocessing(model, scene.data)
        pixels = eval_pixels(images, SELECTION, config)[: scene.batch]
        labels = torch.from_numpy(images.labels(SELECTION)[: scene.batch])
        loss = torch.nn.functional.cross_entropy(model(normalise(pixels, config)), labels)
        loss.backward()
    return peak.grown


def _question(scene: Scene) -> int:
    """Peak of one answer of a new worker."""
    worker_config = WorkerConfig(
        uri=scene.store.uri,
        seed=0,
        data=scene.data,
        base=BaseConfig(),
        metric="top1",
        batchnorm_samples=2,
    )
    members = _members(scene)
    torch.set_num_threads(1)
    worker = WorkerContext(worker_config)
    mix = Mix.mean([member.name for member in members])
    question = MixGradient(mix=mix, components=("",), epoch=0, batch=0, batch_size=scene.batch)
    cohort = Cohort(
        id="c", model=ModelConfig(name=scene.model), base="base/none", batchnorm="average"
    )
    order = GradientOrder(cohort=cohort, question=question, ingredients=members)
    with PeakAnonymous() as peak:
        list(measure_gradient(order, 0, worker))
    return peak.grown


def _members(scene: Scene) -> tuple[Checkpoint, ...]:
    manifests = [read_manifest(scene.store, id_) for id_ in scene.ids]
    return tuple(manifest.checkpoint for manifest in manifests if manifest is not None)


def _learned(scene: Scene) -> int:
    return _soup(scene, f"{{learned: {{epochs: 1, batch_size: {scene.batch}}}}}")


def _mehl(scene: Scene) -> int:
    return _soup(scene, f"{{mehl: {{epochs: 1, batch_size: {scene.batch}}}}}")


def _soup(scene: Scene, recipe: str) -> int:
    files = [f"{scene.root}/store/{checkpoint_dir(id_)}/{WEIGHTS}" for id_ in scene.ids]
    request = SoupRequest(
        checkpoints=tuple(files),
        model=scene.model,
        data=f"{scene.root}/images",
        recipe=recipe,
        out=f"{scene.root}/{recipe[1:5]}",
        batchnorm="average",
        image_size=SIZE,
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), PeakAnonymous() as peak:
        make_soups(request, plain=True)
    return peak.grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--folder")
    for name, value in measure(**vars(parser.parse_args())).items():
        print(f"{name:>18}  {value:.4g}")


if __name__ == "__main__":
    main()
