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
"""Of an epoch: per optimizer step, the indices of each micro-batch."""


class TrainBatches:
    """The training images of one run on one rank, ready to be asked for batches."""

    def __init__(self, net: nn.Module, run: RunSpec, worker: WorkerContext) -> None:
        images, setting = worker.images, worker.setting
        self._run, self._worker = run, worker
        self._config = preprocessing(net, setting.data)
        self._transform = train_transform(run.train, self._config)
        self._learners = images.train_indices(run.fold)
        self._pixels = train_pixels(images, self._config, worker.progress.touch)
        self._labels = images.labels("train")
        self._mixing = Mixing(run.train, len(images.classes))
        self.steps_per_epoch = run.train.steps_per_epoch(len(self._learners), setting.ranks)
        self.weights = class_weights(run.train, self._labels[self._learners], images.classes)
        self._require_images()

    def _require_images(self) -> None:
        if self.steps_per_epoch == 0:
            ranks = self._worker.setting.ranks
            raise UserError(
                f"data.train: {len(self._learners)} training images are too few for {ranks} ranks, "
                "each of which needs two; add images or lower fleet.gpus_per_run"
            )

    def plan(self, epoch: int, micro_batch: int | None = None) -> EpochPlan:
        """What this rank sees in an epoch, a function of seeds."""
        run, setting = self._run, self._worker.setting
        order = epoch_order(len(self._learners), setting.seed, run.stream, epoch)
        return step_batches(
            self._learners[order], run.train, setting.ranks, self._worker.rank, micro_batch
        )

    def batches(self, plan: EpochPlan, epoch: int) -> Iterator[TrainBatch]:
        """Every micro-batch of the plan, decoded and augmented, on the host."""
        setting = self._worker.setting
        return train_batches(
            self._pixels,
            self._labels,
            self._transform,
            [micro for micros in plan for micro in micros],
            setting.seed,
            self._run.stream,
            epoch,
            setting.data.workers,
            pin=setting.device == "cuda",
        )

    def to_device(self, batch: TrainBatch, epoch: int) -> TrainBatch:
        """A batch on the device, normalised and mixed; mixing draws from torch's CPU generator."""
        device = self._worker.setting.device
        images, labels = (each.to(device, non_blocking=True) for each in batch)
        if images.dtype == torch.uint8:
            images = normalise(images, self._config)
        images, targets = self._mixing.mix(images, labels, epoch)
        if self._run.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets
