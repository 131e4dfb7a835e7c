"""One optimizer step after another: the plan, the gradients, the books.

    plan of an epoch --> Step --backward, micro-batch by micro-batch--> optimizer --> Position

All ranks of a gang run this in step; what they must agree on crosses with the loss.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from workers.data import Images, normalise
from workers.data.augment import train_transform
from workers.data.loader import epoch_order, step_batches, train_batches
from workers.model import preprocessing
from workers.optim import body_lr
from workers.snapshot import Position
from workers.spec import num_epochs_begun
from workers.types import RunSpec, TrainOrder, digest
from workers.worker import Worker

if TYPE_CHECKING:
    from workers.scribe import Scribe

LOOK_S = 0.5
"""Seconds between looks at the loss on an accelerator; each look waits for the device."""
AGREE_EVERY = 10
"""Steps between looks, on accelerators, at whether a rank was asked to stop."""

Batch = tuple[Tensor, Tensor]


class Objective(nn.Module):
    """(images, labels) -> mean cross-entropy.

    This shell is what Accelerate wraps and patches; the network inside stays bare, so it is saved
    under its own names and scored in its own precision.
    """

    def __init__(self, net: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.net = net
        self.smoothing = smoothing

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.net(images).float()
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)


@dataclass
class Step:
    """What one rank learns from in one optimizer step; batches are loaded when they are asked."""

    images: int
    micros: int
    batches: Iterator[Batch]


@dataclass
class Training:
    """Everything that lives during one order. `position` is all that changes besides tensors."""

    order: TrainOrder
    attempt: int
    worker: Worker
    accelerator: Any
    """Of accelerate; made in train.py, its only door."""
    net: nn.Module
    objective: nn.Module
    optimizer: Any
    scheduler: Any
    steps_per_epoch: int
    position: Position
    scribe: "Scribe | None"
    """Rank 0's."""
    loss_sum: Tensor
    """`position.loss_sum`, on the device: reading it there would wait for every step."""
    reason: str | None = None
    """Why to stop early."""
    saved_at: int = -1
    images: int = 0
    """Since `clock`, over all ranks."""
    clock: float = field(default_factory=time.monotonic)
    looked_at: float = 0.0

    @property
    def run(self) -> RunSpec:
        return self.order.run

    @property
    def ends_epoch(self) -> bool:
        return self.position.step % self.steps_per_epoch == 0

    @property
    def checkpoint_due(self) -> bool:
        every = self.run.train.checkpoint_steps(self.steps_per_epoch)
        step = self.position.step
        return step % every == 0 or step == self.order.stop_step

    @property
    def images_per_s(self) -> float:
        return self.images / max(time.monotonic() - self.clock, 1e-9)


def steps(t: Training) -> Iterator[Step]:
    """The remaining optimizer steps, each with its first batch loaded.

    The plan of an epoch is a pure function, so a resume cuts off the steps already done.
    """
    setting, images, spec = t.worker.setting, t.worker.images, t.run.train
    transform = train_transform(spec, preprocessing(t.net, setting.data))
    while t.position.step < t.order.stop_step:
        epoch, done = divmod(t.position.step, t.steps_per_epoch)
        order = epoch_order(images.count("train"), setting.seed, t.run.stream, epoch)
        plan = step_batches(order, spec, setting.ranks, t.worker.rank, t.order.micro_batch)
        plan = plan[done : done + t.order.stop_step - t.position.step]
        batches = train_batches(
            Decoding(images),
            images.labels("train"),
            transform,
            [micro for micros in plan for micro in micros],
            setting.seed,
            t.run.stream,
            epoch,
            setting.data.workers,
        )
        _set_mode(t.net, t.run)
        for micros in plan:
            rest = islice(batches, len(micros) - 1)
            yield Step(sum(map(len, micros)), len(micros), chain([next(batches)], rest))


class Decoding:
    """The training images, decoded whenever they are asked for."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images.count("train")

    def __getitem__(self, i: int) -> Image.Image:
        return self.images.image("train", i)


def _set_mode(net: nn.Module, run: RunSpec) -> None:
    """Training mode, except for what the run leaves as it was."""
    net.train(run.role != "probe")
    for module in net.modules():
        if run.train.bn_freeze and isinstance(module, _BatchNorm):
            module.eval()


def learn(t: Training, step: Step) -> None:
    """One optimizer step: every image of it weighs the same, in whichever micro-batch it came."""
    t.worker.memory_is = None
    t.scheduler.step_update(t.position.step)
    loss = torch.zeros((), dtype=torch.float64, device=t.accelerator.device)
    for micro, (images, labels) in enumerate(step.batches):
        loss += _backward(t, step, micro, images, labels)
        t.worker.progress.touch()
    if t.run.train.clip_grad is not None:
        t.accelerator.clip_grad_norm_(t.objective.parameters(), t.run.train.clip_grad)
    t.optimizer.step()
    t.optimizer.zero_grad()
    _account(t, _agree(t, loss), step.images * t.worker.setting.ranks)


def _backward(t: Training, step: Step, micro: int, images: Tensor, labels: Tensor) -> Tensor:
    """Add a micro-batch's gradients; gradients cross ranks with the last one only."""
    seed = t.worker.setting.seed
    torch.manual_seed(_noise_seed(seed, t.run.stream, t.position.step, micro, t.worker.rank))
    images = images.to(t.accelerator.device, non_blocking=True)
    labels = labels.to(t.accelerator.device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = normalise(images, preprocessing(t.net, t.worker.setting.data))
    is_last = micro == step.micros - 1
    alone = contextlib.nullcontext() if is_last else t.accelerator.no_sync(t.objective)
    with alone:
        loss = t.objective(images, labels) * (len(labels) / step.images)
        t.accelerator.backward(loss)
    return loss.detach()


def _noise_seed(seed: int, stream: str, step: int, micro: int, rank: int) -> int:
    """Of everything random inside the network: dropout, stochastic depth."""
    return int(digest([seed, stream, step, micro, rank], 15), 16)


def _agree(t: Training, loss: Tensor) -> Tensor:
    """The step's mean loss over ranks; sets `reason` on all ranks alike if one is to stop."""
    asked, ranks = t.worker.progress.interrupt, t.worker.setting.ranks
    if ranks == 1:
        t.reason = asked
        return loss
    both = torch.stack([loss, torch.full_like(loss, asked is not None)])
    torch.distributed.all_reduce(both)
    look = t.accelerator.device.type == "cpu" or t.position.step % AGREE_EVERY == 0
    if look and both[1].item() > 0:
        t.reason = asked or "another rank was asked to stop"
    return both[0] / ranks


def _account(t: Training, loss: Tensor, images: int) -> None:
    """Book a finished step, and show it."""
    if t.ends_epoch:  # the step before this one did
        t.loss_sum.zero_()
        t.position.images = 0
    t.loss_sum += loss * images
    t.position.images += images
    t.position.step += 1
    t.images += images
    now = time.monotonic()
    if t.accelerator.device.type == "cpu" or now - t.looked_at >= LOOK_S:
        t.looked_at = now
        _show(t, loss.item())


def _show(t: Training, loss: float) -> None:
    require_finite(t, loss)
    t.worker.progress.touch(
        run=t.run.id,
        epoch=num_epochs_begun(t.position.step, t.steps_per_epoch),
        epochs=t.run.train.epochs,
        step=t.position.step,
        loss=loss,
        images_per_s=t.images_per_s,
    )
    if t.scribe:
        t.scribe.show_step(t.position.step, loss, body_lr(t.optimizer))


def require_finite(t: Training, loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"run {t.run.id} diverged: its loss is {loss} at step {t.position.step}"
        )


def read_loss(t: Training) -> float:
    t.position.loss_sum = float(t.loss_sum.item())
    require_finite(t, t.position.loss_sum)
    return t.position.loss_sum
