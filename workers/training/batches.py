"""Training batches of one run on one rank: decoded, augmented, on the device, normalised, mixed.

training images -> plan of an epoch -> batches -> device -> normalise -> mix -> loss
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from workers.context import WorkerContext
from workers.data import (
    Mixing,
    epoch_order,
    normalise,
    step_batches,
    train_batches,
    train_pixels,
    train_transform,
)
from workers.errors import UserError
from workers.models.build import preprocessing
from workers.training.loss import class_weights
from workers.types import RunSpec

TrainBatch = tuple[Tensor, Tensor]
EpochPlan = list[list[np.ndarray]]
"""Per optimizer step of an epoch, the image indices of each micro-batch."""


class TrainBatches:
    """The training images of one run on one rank, in batches."""

    def __init__(self, net: nn.Module, run: RunSpec, worker: WorkerContext) -> None:
        images, config = worker.images, worker.config
        self._run, self._worker = run, worker
        self._config = preprocessing(net, config.data)
        self._transform = train_transform(run.train, self._config)
        self._indices = images.train_indices(run.fold)
        self._pixels = train_pixels(images, self._config, worker.progress.touch)
        self._labels = images.labels("train")
        self._mixing = Mixing(run.train, len(images.classes))
        self.steps_per_epoch = run.train.steps_per_epoch(len(self._indices), config.ranks)
        self.weights = class_weights(run.train, self._labels[self._indices], images.classes)
        self._require_images()

    def _require_images(self) -> None:
        if self.steps_per_epoch == 0:
            ranks = self._worker.config.ranks
            raise UserError(
                f"data.train: {len(self._indices)} training images are too few for {ranks} ranks, "
                "each of which needs two; add images or lower fleet.gpus_per_run"
            )

    def plan(self, epoch: int, micro_batch: int | None = None) -> EpochPlan:
        """The images of this rank in an epoch, a function of seeds."""
        run, config = self._run, self._worker.config
        order = epoch_order(len(self._indices), config.seed, run.stream, epoch)
        return step_batches(
            self._indices[order], run.train, config.ranks, self._worker.rank, micro_batch
        )

    def batches(self, plan: EpochPlan, epoch: int) -> Iterator[TrainBatch]:
        """Every micro-batch of the plan, decoded and augmented, on the host."""
        config = self._worker.config
        return train_batches(
            self._pixels,
            self._labels,
            self._transform,
            [micro for micros in plan for micro in micros],
            config.seed,
            self._run.stream,
            epoch,
            config.data.workers,
            pin=config.device == "cuda",
        )

    def to_device(self, batch: TrainBatch, epoch: int) -> TrainBatch:
        """The batch on the device, normalised and mixed; mixup draws from torch's CPU generator."""
        device = self._worker.config.device
        images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        if images.dtype == torch.uint8:
            images = normalise(images, self._config)
        images, targets = self._mixing.mix(images, labels, epoch)
        if self._run.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets
