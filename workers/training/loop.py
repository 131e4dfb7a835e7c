"""One optimizer step after another: the plan, the gradients, the books.

    plan of an epoch --> Step --backward, micro-batch by micro-batch--> optimizer --> Position

All ranks of a gang run this in step; what they must agree on crosses with the loss and, at the end
of an epoch, with its score.
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

LOOK_S = 0.5
"""Seconds between looks at the loss on an accelerator; each look waits for the device."""
AGREE_EVERY = 10
"""Steps between looks, on accelerators, at whether a rank was asked to stop."""


@dataclass
class Step:
    """What one rank learns from in one optimizer step; batches are loaded when they are asked."""

    images: int
    num_micro_batches: int
    batches: Iterator[TrainBatch]


@dataclass
class PhaseOptimizer:
    """What learns during one section of training; the next section has one of its own."""

    span: UnfreezePhase
    objective: nn.Module
    optimizer: Any
    """Accelerate's, around timm's."""
    schedule: Schedule


@dataclass
class TrainLoop:
    """Everything that lives during one order. `position` is all that changes besides tensors."""

    order: TrainOrder
    attempt: int
    worker: WorkerContext
    accelerator: Any
    """Of accelerate; made in train.py, its only door."""
    net: nn.Module
    manner: TrainMode
    intake: TrainBatches
    position: TrainPosition
    average: Any = None
    """timm's moving average of the network; rank 0's, if the run keeps one."""
    scribe: "RunRecorder | None" = None
    """Rank 0's."""
    learner: PhaseOptimizer = field(init=False)
    loss_sum: Tensor = field(init=False)
    """`position.loss_sum`, on the device: reading it there would wait for every step."""
    reason: str | None = None
    """Why to stop early."""
    saved: tuple[int, str] = (-1, "")
    """Step and id of the newest checkpoint; the start, if it is the run's own."""
    images: int = 0
    """Since `clock`, over all ranks."""
    clock: float = field(default_factory=time.monotonic)
    looked_at: float = 0.0

    def __post_init__(self) -> None:
        self.loss_sum = torch.tensor(
            self.position.loss_sum, dtype=torch.float64, device=self.accelerator.device
        )

    @property
    def run(self) -> RunSpec:
        return self.order.run

    @property
    def steps_per_epoch(self) -> int:
        return self.intake.steps_per_epoch

    @property
    def epoch(self) -> int:
        """That the next step belongs to, counted from 0."""
        return self.position.step // self.steps_per_epoch

    @property
    def span(self) -> UnfreezePhase:
        """That the next step belongs to."""
        return phase_at(self.run, self.epoch)

    @property
    def ends_epoch(self) -> bool:
        return self.position.step % self.steps_per_epoch == 0

    @property
    def is_over(self) -> bool:
        """Whether the run's patience is."""
        in_last = self.epoch - phases(self.run)[-1].first
        return patience_is_over(self.position.history, self.run.train.patience, in_last)

    @property
    def checkpoint_due(self) -> bool:
        every = self.run.train.checkpoint_steps(self.steps_per_epoch)
        step = self.position.step
        return step % every == 0 or step == self.order.stop_step or self.is_over

    @property
    def images_per_s(self) -> float:
        return self.images / max(time.monotonic() - self.clock, 1e-9)


def steps(t: TrainLoop) -> Iterator[Step]:
    """The remaining optimizer steps, each with its first batch loaded.

    The plan of an epoch is a pure function, so a resume cuts off the steps already done.
    """
    while t.position.step < t.order.stop_step and not t.is_over:
        epoch, done = divmod(t.position.step, t.steps_per_epoch)
        plan = t.intake.plan(epoch, t.order.micro_batch)
        plan = plan[done : done + t.order.stop_step - t.position.step]
        batches = t.intake.batches(plan, epoch)
        for micros in plan:
            rest = islice(batches, len(micros) - 1)
            yield Step(sum(map(len, micros)), len(micros), chain([next(batches)], rest))


def learn(t: TrainLoop, step: Step) -> None:
    """One optimizer step: every image of it weighs the same, in whichever micro-batch it came."""
    t.worker.loaded_checkpoint_id = None
    set_rates(t)
    loss = torch.zeros((), dtype=torch.float64, device=t.accelerator.device)
    for micro, batch in enumerate(step.batches):
        loss += _backward(t, step, micro, batch)
        t.worker.progress.touch()
    objective, optimizer = t.learner.objective, t.learner.optimizer
    if t.run.train.clip_grad is not None:
        t.accelerator.clip_grad_norm_(objective.parameters(), t.run.train.clip_grad)
    optimizer.step()
    optimizer.zero_grad()
    if t.average is not None:
        t.average.update(t.net, step=t.position.step + 1)
    _account(t, _agree(t, loss), step.images * t.worker.setting.ranks)


def set_rates(t: TrainLoop) -> None:
    """Of the step to come. Each section has a schedule with its own steps and scores."""
    first = t.learner.span.first
    scores = t.position.scores(t.epoch - first)
    t.learner.schedule.set(t.position.step - first * t.steps_per_epoch, scores)


def _backward(t: TrainLoop, step: Step, micro: int, batch: TrainBatch) -> Tensor:
    """Add a micro-batch's gradients; gradients cross ranks with the last one only."""
    seed, num = t.worker.setting.seed, len(batch[1])
    torch.manual_seed(_noise_seed(seed, t.run.stream, t.position.step, micro, t.worker.rank))
    images, targets = t.intake.to_device(batch, t.epoch)
    is_last = micro == step.num_micro_batches - 1
    alone = contextlib.nullcontext() if is_last else t.accelerator.no_sync(t.learner.objective)
    with alone:
        loss = t.learner.objective(images, targets) * (num / step.images)
        t.accelerator.backward(loss)
    return loss.detach()


def _noise_seed(seed: int, stream: str, step: int, micro: int, rank: int) -> int:
    """Of what mixes the images, and of everything random inside the network."""
    return int(digest([seed, stream, step, micro, rank], 15), 16)


def _agree(t: TrainLoop, loss: Tensor) -> Tensor:
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


def _account(t: TrainLoop, loss: Tensor, images: int) -> None:
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
    if t.scribe:
        t.scribe.show_step(t.position.step, loss, body_lr(t.learner.optimizer))


def require_finite(t: TrainLoop, loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"run {t.run.id} diverged: its loss is {loss} at step {t.position.step}"
        )


def read_loss(t: TrainLoop) -> float:
    t.position.loss_sum = float(t.loss_sum.item())
    require_finite(t, t.position.loss_sum)
    return t.position.loss_sum
