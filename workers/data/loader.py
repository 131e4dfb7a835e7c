"""Training batches: the images of every step, and their reading. A function of seeds only.

epoch_order -> step_batches (per optimizer step, rank, micro-batch) -> train_batches
"""

import ctypes
import hashlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from workers.config.train import TrainConfig

PR_SET_PDEATHSIG = 1
"""Operation of Linux' prctl(2): the signal that a process gets when its parent ends."""

PREFETCH = 3
"""Batches that a loader process prepares in advance."""

LoadedBatch = tuple[Tensor, Tensor]


class Pixels(Protocol):
    """The training images by index. Picklable, for loader processes."""

    def __len__(self) -> int: ...
    def tensor(self, i: int, /) -> Tensor: ...


def epoch_order(n: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    """A permutation of the training images, (n,) int64."""
    return np.random.default_rng(_seed(seed, stream, epoch)).permutation(n)


def step_batches(
    order: np.ndarray, spec: TrainConfig, ranks: int, rank: int, micro_batch: int | None = None
) -> list[list[np.ndarray]]:
    """The micro-batches of one rank, for every optimizer step of the epoch.

    A step has the same images for any `micro_batch`. Micro-batches differ by at most one image and
    have at least the two that BatchNorm needs. The short last step leaves out up to ranks - 1
    images, so that all ranks have equally many.
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
    pixels: Pixels,
    labels: np.ndarray,
    transform: Callable[[Tensor], Tensor],
    plan: list[np.ndarray],
    seed: int,
    stream: str,
    epoch: int,
    workers: int,
    pin: bool = False,
) -> Iterator[LoadedBatch]:
    """(x (B, 3, H, W) of the transform's dtype, y int64 (B,)) for every batch of indices in `plan`.

    The bits are the same for any number of loader processes, which run torch on one thread. With
    `workers` 0 the global generators of random, numpy and torch change. `pin` uses page-locked
    memory, from which a GPU copies while it computes.
    """
    num = min(workers, len(plan))
    loader = DataLoader(
        _TrainImages(pixels, labels, transform, seed, stream, epoch),
        batch_sampler=[batch.tolist() for batch in plan],
        num_workers=num,
        collate_fn=_unchanged,
        pin_memory=pin,
        prefetch_factor=PREFETCH if num else None,
        generator=torch.Generator(),  # otherwise the loader draws from the global one
        worker_init_fn=_end_with_parent,
    )
    return iter(loader)


def _end_with_parent(number: int) -> None:
    """Let this loader process be killed when its parent is: by itself it would notice after
    seconds, in which it holds the files of the parent's GPU open."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _TrainImages(Dataset[LoadedBatch]):
    """Batches by their indices. A sample depends only on the seeds and its own index."""

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        transform: Callable[[Tensor], Tensor],
        seed: int,
        stream: str,
        epoch: int,
    ) -> None:
        self.pixels, self.transform = pixels, transform
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.seed, self.stream, self.epoch = seed, stream, epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> LoadedBatch:
        first = self._sample(indices[0])
        # Stacking would keep the memory layout of transposed images. In this one layout,
        # convolutions give the same bits for any number of workers.
        x = torch.empty((len(indices), *first.shape), dtype=first.dtype)
        x[0] = first
        for place, i in enumerate(indices[1:], start=1):
            x[place] = self._sample(i)
        return x, self.labels[indices]

    def _sample(self, i: int) -> Tensor:
        image = self.pixels.tensor(i)
        _seed_globals(_seed(self.seed, self.stream, self.epoch, i))
        return self.transform(image)


def _unchanged(batch: Any) -> Any:
    """The argument: `__getitems__` returns a whole batch."""
    return batch


def _seed(*parts: int | str) -> int:
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Only the CPU generator: torch.manual_seed would also reset every CUDA device, per image.
    torch.default_generator.manual_seed(seed % 2**63)
