"""Training batches: which images each step sees, and how they are read; a function of seeds only.

epoch_order -> step_batches (per optimizer step, rank, micro-batch) -> train_batches
"""

import hashlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from workers.data.index import Images
from workers.spec import TrainSpec


def epoch_order(n: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    """(n,) int64: a permutation of the training images."""
    return np.random.default_rng(_seed(seed, stream, epoch)).permutation(n)


def step_batches(
    order: np.ndarray, spec: TrainSpec, ranks: int, rank: int, micro_batch: int | None = None
) -> list[list[np.ndarray]]:
    """Per optimizer step of the epoch, the micro-batches of one rank.

    A step is the same set of images for any `micro_batch`. Micro-batches are as even as can be
    and hold at least two images, which BatchNorm needs. Of the short last step at most ranks - 1
    images are left out, so that all ranks hold equally many.
    """
    per_step = spec.batch_size * spec.grad_accum_steps * ranks
    size = max(2, min(spec.batch_size, micro_batch or spec.batch_size))
    steps = []
    for step in range(spec.steps_per_epoch(len(order), ranks)):
        images = order[step * per_step : (step + 1) * per_step]
        share = len(images) // ranks
        mine = images[rank * share : (rank + 1) * share]
        num = max(1, min(-(-share // size), share // 2))
        steps.append(np.array_split(mine, num))
    return steps


def train_batches(
    images: Images,
    transform: Callable[[Image.Image], torch.Tensor],
    plan: list[np.ndarray],
    seed: int,
    stream: str,
    epoch: int,
    workers: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(x float32 (B, 3, H, W), y int64 (B,)) for every batch of indices in `plan`.

    The same bits for any number of loader processes. With `workers` 0 the global generators of
    random, numpy and torch are left wherever the last sample put them.
    """
    loader = DataLoader(
        _TrainImages(images, transform, seed, stream, epoch),
        batch_sampler=[batch.tolist() for batch in plan],
        num_workers=min(workers, len(plan)),
        generator=torch.Generator(),  # otherwise the loader draws from the global one
    )
    return iter(loader)


class _TrainImages(Dataset[tuple[torch.Tensor, int]]):
    def __init__(
        self,
        images: Images,
        transform: Callable[[Image.Image], torch.Tensor],
        seed: int,
        stream: str,
        epoch: int,
    ) -> None:
        self.images, self.transform = images, transform
        self.seed, self.stream, self.epoch = seed, stream, epoch
        self.labels = images.labels("train").tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = self.images.image("train", i)
        _seed_globals(_seed(self.seed, self.stream, self.epoch, i))
        return self.transform(image), self.labels[i]


def _seed(*parts: int | str) -> int:
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # The CPU generator alone: torch.manual_seed would reset every CUDA device per image.
    torch.default_generator.manual_seed(seed % 2**63)
