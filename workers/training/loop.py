"""The training loop: optimizer steps, their gradients, and the run's position.

    plan of an epoch --> Step --backward, micro-batch by micro-batch--> optimizer --> TrainPosition

All ranks of a gang run it in step. They exchange what they must agree on with the loss of a step
and with the score of an epoch.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workers.config.train import num_epochs_begun
from workers.context import WorkerContext
from workers.training.batches import TrainBatch, TrainBatches
from workers.training.lr_schedule import Schedule, patience_is_over
from workers.training.optim import body_lr
from workers.training.train_mode import TrainMode
from workers.training.train_state import TrainPosition
from workers.training.unfreezing import UnfreezePhase, phase_at, phases
from workers.types import RunSpec, TrainOrder, digest

if TYPE_CHECKING:
    from workers.training.recorder import RunRecorder

SHOW_EVERY_S = 0.5
"""Seconds between reads of the loss on an accelerator; every read waits for the device."""
AGREE_EVERY = 10
"""Steps on accelerators between checks whether a rank was asked to stop."""


@dataclass
class Step:
    """The images of one rank in one optimizer step; batches are loaded on demand."""

    num_images: int
    num_micro_batches: int
    batches: Iterator[TrainBatch]


@dataclass
class PhaseOptimizer:
    """Loss, optimizer and schedule of one unfreeze phase."""

    phase: UnfreezePhase
    loss_module: nn.Module
    optimizer: Any
    """Accelerate's, around timm's."""
    schedule: Schedule


@dataclass
class TrainLoop:
    """The state of one order. Besides tensors only `position` changes from step to step."""

    order: TrainOrder
    attempt: int
    worker: WorkerContext
    accelerator: Any
    """Accelerate's; made in train.py, which alone imports it."""
    net: nn.Module
    mode: TrainMode
    data: TrainBatches
    position: TrainPosition
    average: Any = None
    """timm's moving average of the network. None: other ranks, or the run keeps none."""
    recorder: "RunRecorder | None" = None
    """None: ranks other than 0."""
    optimization: PhaseOptimizer = field(init=False)
    loss_sum: Tensor = field(init=False)
    """`position.loss_sum` on the device, because reading it at every step would wait for it."""
    stop_reason: str | None = None
    """Why to stop early. None: not asked to."""
    last_saved: tuple[int, str] = (-1, "")
    """(step, id) of the newest checkpoint, which may be the run's own start."""
    num_images: int = 0
    """Images since `clock`, over all ranks."""
    clock: float = field(default_factory=time.monotonic)
    shown_at: float = 0.0
    compiled: set[tuple[int, int, int]] = field(default_factory=set)
    """(first epoch of the phase, images, micro-batches) of the steps that were compiled."""

    def __post_init__(self) -> None:
        self.loss_sum = torch.tensor(
            self.position.loss_sum, dtype=torch.float64, device=self.accelerator.device
        )

    @property
    def run(self) -> RunSpec:
        return self.order.run

    @property
    def steps_per_epoch(self) -> int:
        return self.data.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0."""
        return self.position.step // self.steps_per_epoch

    @property
    def phase(self) -> UnfreezePhase:
        """The phase of the next step."""
        return phase_at(self.run, self.epoch)

    @property
    def ends_epoch(self) -> bool:
        return self.position.step % self.steps_per_epoch == 0

    @property
    def is_over(self) -> bool:
        """Whether the run's patience is over."""
        epochs_in_last_phase = self.epoch - phases(self.run)[-1].first
        patience = self.run.train.patience
        return patience_is_over(self.position.history, patience, epochs_in_last_phase)

    @property
    def checkpoint_due(self) -> bool:
        every = self.run.train.checkpoint_steps(self.steps_per_epoch)
        step = self.position.step
        return step % every == 0 or step == self.order.stop_step or self.is_over

    @property
    def images_per_s(self) -> float:
        return self.num_images / max(time.monotonic() - self.clock, 1e-9)


def steps(t: TrainLoop) -> Iterator[Step]:
    """The remaining optimizer steps, each with its first batch loaded.

    The plan of an epoch is a pure function, so a resumed run skips the steps already done.
    """
    while t.position.step < t.order.stop_step and not t.is_over:
        epoch, done = divmod(t.position.step, t.steps_per_epoch)
        plan = t.data.plan(epoch, t.order.micro_batch)
        plan = plan[done : done + t.order.stop_step - t.position.step]
        batches = t.data.batches(plan, epoch)
        for micros in plan:
            rest = islice(batches, len(micros) - 1)
            yield Step(sum(map(len, micros)), len(micros), chain([next(batches)], rest))


def learn(t: TrainLoop, step: Step) -> None:
    """One optimizer step, in which all images weigh the same whatever their micro-batch."""
    t.worker.loaded_checkpoint_id = None
    set_rates(t)
    loss = torch.zeros((), dtype=torch.float64, device=t.accelerator.device)
    for micro, batch in enumerate(step.batches):
        loss += _backward(t, step, micro, batch)
        t.worker.progress.touch()
    loss_module, optimizer = t.optimization.loss_module, t.optimization.optimizer
    if t.run.train.clip_grad is not None:
        t.accelerator.clip_grad_norm_(loss_module.parameters(), t.run.train.clip_grad)
    optimizer.step()
    optimizer.zero_grad()
    if t.average is not None:
        t.average.update(t.net, step=t.position.step + 1)
    _record_step(t, _agree(t, loss), step.num_images * t.worker.config.ranks)


def set_rates(t: TrainLoop) -> None:
    """Set the learning rates of the next step. A phase's schedule has its own steps and scores."""
    first = t.optimization.phase.first
    scores = t.position.scores(t.epoch - first)
    t.optimization.schedule.set(t.position.step - first * t.steps_per_epoch, scores)


def _backward(t: TrainLoop, step: Step, micro: int, batch: TrainBatch) -> Tensor:
    """Add a micro-batch's gradients; ranks exchange gradients with the last one only."""
    seed, num = t.worker.config.seed, len(batch[1])
    torch.manual_seed(_noise_seed(seed, t.run.stream, t.position.step, micro, t.worker.rank))
    images, targets = t.data.to_device(batch, t.epoch)
    is_last = micro == step.num_micro_batches - 1
    loss_module = t.optimization.loss_module
    no_sync = contextlib.nullcontext() if is_last else t.accelerator.no_sync(loss_module)
    with no_sync:
        loss = loss_module(images, targets) * (num / step.num_images)
        t.accelerator.backward(loss)
    return loss.detach()


def _noise_seed(seed: int, stream: str, step: int, micro: int, rank: int) -> int:
    """The seed of mixup and of everything random inside the network."""
    return int(digest([seed, stream, step, micro, rank], 15), 16)


def _agree(t: TrainLoop, loss: Tensor) -> Tensor:
    """The step's mean loss over ranks; sets `stop_reason` on all ranks if one is to stop."""
    asked, ranks = t.worker.progress.interrupt, t.worker.config.ranks
    if ranks == 1:
        t.stop_reason = asked
        return loss
    both = torch.stack([loss, torch.full_like(loss, asked is not None)])
    torch.distributed.all_reduce(both)
    is_checked = t.accelerator.device.type == "cpu" or t.position.step % AGREE_EVERY == 0
    if is_checked and both[1].item() > 0:
        t.stop_reason = asked or "another rank was asked to stop"
    return both[0] / ranks


def _record_step(t: TrainLoop, loss: Tensor, num_images: int) -> None:
    """Advance the position by a finished step, and show it."""
    if t.ends_epoch:  # the step before this one ended it
        t.loss_sum.zero_()
        t.position.images = 0
    t.loss_sum += loss * num_images
    t.position.images += num_images
    t.position.step += 1
    t.num_images += num_images
    now = time.monotonic()
    if t.accelerator.device.type == "cpu" or now - t.shown_at >= SHOW_EVERY_S:
        t.shown_at = now
        _show(t, loss.item())


def _show(t: TrainLoop, loss: float) -> None:
    require_finite(t, loss)
    t.worker.progress.touch(
        run=t.run.id,
        epoch=num_epochs_begun(t.position.step, t.steps_per_epoch),
        epochs=t.run.train.epochs,
        step=t.position.step,
        loss=loss,
        images_per_s=t.images_per_s,
    )
    if t.recorder:
        t.recorder.show_step(t.position.step, loss, body_lr(t.optimization.optimizer))


def require_finite(t: TrainLoop, loss: float) -> None:
    """Raises FloatingPointError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"run {t.run.id} diverged: its loss is {loss} at step {t.position.step}"
        )


def read_loss(t: TrainLoop) -> float:
    """Copy the loss sum from the device into the position."""
    t.position.loss_sum = float(t.loss_sum.item())
    require_finite(t, t.position.loss_sum)
    return t.position.loss_sum
