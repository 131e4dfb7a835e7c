"""Training: one order, from a checkpoint to a step. The only door to Accelerate.

    start --> Training --> step, step, ... --> end of epoch: score --> checkpoint --> Trained
                 ^                                                         |
                 +------- own checkpoint: weights, optimizer, position ----+   or Interrupted

Every random number comes from (seed, stream, epoch, sample) or (seed, stream, step, micro-batch,
rank) and every rate from the step, so a run that was stopped and taken up again, wherever, writes
the same bytes. Ranks of a gang walk in step; rank 0 alone scores, writes and tells.
"""

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from workers import snapshot
from workers.checkpoints import load_train_state, open_weights
from workers.data.augment import train_transform
from workers.data.loader import epoch_order, step_batches, train_batches
from workers.model import assign_weights, head_parameter_names, preprocessing
from workers.optim import body_lr, create_optimizer, create_schedule
from workers.scribe import Scribe
from workers.snapshot import Position
from workers.spec import TrainSpec
from workers.types import (
    AnyEvent,
    Checkpoint,
    Interrupted,
    RunSpec,
    Setting,
    Started,
    Trained,
    TrainOrder,
    UserError,
    digest,
)
from workers.worker import Worker

LOOK_S = 0.5
"""Seconds between looks at the loss on an accelerator; each look waits for the device."""
AGREE_EVERY = 10
"""Steps between looks, on accelerators, at whether a rank was asked to stop."""
GANG_TIMEOUT = timedelta(hours=1)
"""Ranks wait this long for rank 0 to score and write; a hang is the heartbeat's to find."""

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
    accelerator: Accelerator
    net: nn.Module
    objective: nn.Module
    optimizer: Any
    scheduler: Any
    steps_per_epoch: int
    position: Position
    scribe: Scribe | None
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


@dataclass
class Momentum:
    """What a worker keeps beside the weights of the checkpoint `id`, to go on without loading."""

    id: str
    optimizer: Optimizer
    position: Position
    scaler: dict[str, Any] | None


def train(order: TrainOrder, attempt: int, worker: Worker) -> Iterator[AnyEvent]:
    """Train `order.run` from `order.start` to `order.stop_step`.

    Yields Started, Evaluated after each epoch, Checkpointed for each complete checkpoint, and at
    the end Trained, or Interrupted if `worker.progress.interrupt` was set. Ranks other than 0
    yield nothing.

    Raises:
        FloatingPointError: the loss left the finite numbers.
        UserError: the run asks for what timm or the device cannot do.
    """
    began, spec = time.monotonic(), order.run.train
    warm = worker.holds(order.run.model, spec.drop_path)
    with (
        accelerated(spec, worker.setting) as accelerator,
        _training(order, attempt, worker, accelerator) as t,
    ):
        for step in _steps(t):
            if t.images == 0 and t.scribe and t.saved_at < 0:
                yield from _started(t, warm)
            _learn(t, step)
            if t.ends_epoch:
                yield from _end_epoch(t)
            if t.checkpoint_due:
                _save(t)
            yield from _written(t)
            if t.reason:
                break
        yield from _finish(t, began)


@contextlib.contextmanager
def accelerated(spec: TrainSpec, setting: Setting) -> Iterator[Accelerator]:
    """A fresh Accelerator; afterwards the process is as if there had been none.

    Accelerate's state is process-wide and would give the next order this one's precision and
    process group.
    """
    if spec.amp_dtype == "float16" and setting.device == "cpu":
        raise UserError("train.amp_dtype: float16 needs a GPU; use bfloat16 or none on a CPU")
    # Without it Accelerate chooses a number of threads itself, and that changes the bits.
    os.environ.setdefault("OMP_NUM_THREADS", str(setting.threads))
    precision = {"none": "no", "bfloat16": "bf16", "float16": "fp16"}[spec.amp_dtype]
    try:
        yield Accelerator(
            cpu=setting.device == "cpu",
            mixed_precision=precision,
            kwargs_handlers=_gang_settings(setting) if setting.ranks > 1 else None,
        )
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()  # the wrapper's hooks sit on parameters that outlive it
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def _gang_settings(setting: Setting) -> list[Any]:
    # Looking for unused parameters keeps the order of gradients in the buckets as it was in the
    # first step, so that after a resume more than two ranks add them up in the same order.
    fixed_buckets = setting.device == "cpu"
    return [
        DistributedDataParallelKwargs(find_unused_parameters=fixed_buckets),
        InitProcessGroupKwargs(timeout=GANG_TIMEOUT),
    ]


# Beginning


@contextlib.contextmanager
def _training(
    order: TrainOrder, attempt: int, worker: Worker, accelerator: Accelerator
) -> Iterator[Training]:
    """The order's start, brought to life; closed and remembered afterwards."""
    run, setting = order.run, worker.setting
    steps_per_epoch = run.train.steps_per_epoch(worker.images.count("train"), setting.ranks)
    net = _network(order, worker)
    with _only_trained_require_grad(net, run):
        kept = _kept_momentum(order, worker)
        raw = kept.optimizer if kept else create_optimizer(net, run.train, _head(net))
        objective, optimizer = accelerator.prepare(
            Objective(net, run.train.smoothing),
            raw,
            # The optimizer's state already lies where torch wants it (step counters on the CPU).
            device_placement=[True, False],
        )
        position = _resume(order, worker, net, raw, kept, accelerator)
        scribe = Scribe(worker, order, attempt, position.step) if worker.rank == 0 else None
        t = Training(
            order=order,
            attempt=attempt,
            worker=worker,
            accelerator=accelerator,
            net=net,
            objective=objective,
            optimizer=optimizer,
            scheduler=create_schedule(raw, run.train, steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            position=position,
            scribe=scribe,
            loss_sum=torch.tensor(
                position.loss_sum, dtype=torch.float64, device=accelerator.device
            ),
        )
        with scribe or contextlib.nullcontext():
            yield t


def _network(order: TrainOrder, worker: Worker) -> nn.Module:
    """The warm network with the start's weights; nothing is loaded if it already is the start."""
    net = worker.model(order.run.model, order.run.train.drop_path)
    if worker.memory_is != order.start.id:
        worker.memory_is = worker.momentum = None
        with open_weights(worker.store, order.start) as weights:
            assign_weights(net, weights, order.start.id)
        worker.memory_is = order.start.id
    return net


@contextlib.contextmanager
def _only_trained_require_grad(net: nn.Module, run: RunSpec) -> Iterator[None]:
    """A probe trains the classifier alone."""
    head = _head(net)
    frozen = [
        parameter
        for name, parameter in net.named_parameters()
        if run.role == "probe" and parameter.requires_grad and name not in head
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _head(net: nn.Module) -> set[str]:
    return head_parameter_names(net)


def _is_own(run: RunSpec, start: Checkpoint) -> bool:
    """Whether a checkpoint is the run's own, with optimizer and position; else weights only."""
    return start.name.startswith(f"{run.id}/")


def _kept_momentum(order: TrainOrder, worker: Worker) -> Momentum | None:
    kept, worker.momentum = worker.momentum, None
    goes_on = _is_own(order.run, order.start) and kept is not None and kept.id == order.start.id
    return kept if goes_on else None


def _resume(
    order: TrainOrder,
    worker: Worker,
    net: nn.Module,
    optimizer: Optimizer,
    kept: Momentum | None,
    accelerator: Accelerator,
) -> Position:
    """Where the run is; the optimizer and the loss scaler get back what they knew there."""
    if not _is_own(order.run, order.start):
        return Position(step=order.start.step)
    if kept is not None:
        position, scaler = kept.position, kept.scaler
    else:
        state = load_train_state(worker.store, order.start)
        if state is None:
            raise ValueError(f"checkpoint {order.start.id} holds no training state to resume from")
        position, scaler = (
            snapshot.give_back(state, net, optimizer),
            state.scalars["scaler"],
        )
    if accelerator.scaler is not None and scaler:
        accelerator.scaler.load_state_dict(scaler)
    return position


# Learning


def _steps(t: Training) -> Iterator[Step]:
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
            images,
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


def _set_mode(net: nn.Module, run: RunSpec) -> None:
    """Training mode, except for what the run leaves as it was."""
    net.train(run.role != "probe")
    for module in net.modules():
        if run.train.bn_freeze and isinstance(module, _BatchNorm):
            module.eval()


def _learn(t: Training, step: Step) -> None:
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
    _require_finite(t, loss)
    t.worker.progress.touch(
        run=t.run.id,
        epoch=(t.position.step - 1) // t.steps_per_epoch,
        epochs=t.run.train.epochs,
        step=t.position.step,
        loss=loss,
        images_per_s=t.images_per_s,
    )
    if t.scribe:
        t.scribe.show_step(t.position.step, loss, body_lr(t.optimizer))


def _require_finite(t: Training, loss: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"run {t.run.id} diverged: its loss is {loss} at step {t.position.step}"
        )


# Telling and saving


def _started(t: Training, warm: bool) -> Iterator[AnyEvent]:
    last, now = t.worker.last_step_at, time.monotonic()
    t.clock = now
    t.saved_at = 0
    yield Started(warm=warm, gap_s=None if last is None else now - last)


def _end_epoch(t: Training) -> Iterator[AnyEvent]:
    """Score the selection split; the other ranks wait, and the clock does not run."""
    mean_loss = _read_loss(t) / t.position.images
    if t.scribe:
        yield t.scribe.evaluate(
            t.net,
            step=t.position.step,
            epoch=t.position.step // t.steps_per_epoch,
            loss=mean_loss,
            lr=body_lr(t.optimizer),
            images_per_s=t.images_per_s,
        )
    t.accelerator.wait_for_everyone()
    t.images, t.clock = 0, time.monotonic()


def _read_loss(t: Training) -> float:
    t.position.loss_sum = float(t.loss_sum.item())
    _require_finite(t, t.position.loss_sum)
    return t.position.loss_sum


def _save(t: Training) -> None:
    """Hand a checkpoint of this step to the background writer."""
    _read_loss(t)
    t.saved_at = t.position.step
    if t.scribe is None:
        return
    raw = t.optimizer.optimizer
    state = snapshot.take(t.net, raw, t.position, scaler=_scaler_state(t.accelerator))
    t.scribe.save(t.net, t.position.step, state)


def _scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else None


def _written(t: Training) -> Iterator[AnyEvent]:
    if t.scribe:
        yield from t.scribe.written()


def _finish(t: Training, began: float) -> Iterator[AnyEvent]:
    """Everything safe in the store, then the last word."""
    stopped_early = t.position.step < t.order.stop_step
    if stopped_early and t.saved_at != t.position.step:
        _save(t)
    _remember(t)
    if t.scribe is None:
        return
    yield from t.scribe.flush()
    if stopped_early:
        yield Interrupted(reason=t.reason or "asked to stop")
    else:
        yield Trained(step=t.position.step, busy_s=time.monotonic() - began)


def _remember(t: Training) -> None:
    """Memory is the last checkpoint, on every rank: a next order from there loads nothing."""
    if t.worker.setting.ranks > 1:
        for buffer in t.net.buffers():  # the others' BatchNorm statistics saw only their images
            torch.distributed.broadcast(buffer, src=0)
    if t.saved_at != t.position.step:
        return
    id_ = f"{t.run.id}/{t.position.step:08d}-{t.attempt}"
    t.worker.memory_is = id_
    t.worker.momentum = Momentum(
        id_, t.optimizer.optimizer, t.position, _scaler_state(t.accelerator)
    )
