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
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.optim import Optimizer

from workers import snapshot
from workers.checkpoints import load_train_state, open_weights
from workers.learning import Objective, Training, learn, read_loss, steps
from workers.model import assign_weights, head_parameter_names
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
)
from workers.worker import Worker

GANG_TIMEOUT = timedelta(hours=1)
"""Ranks wait this long for rank 0 to score and write; a hang is the heartbeat's to find."""


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
        for index, step in enumerate(steps(t)):
            if index == 0:
                yield from _started(t, warm)
            learn(t, step)
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
    if setting.ranks > 1:
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
    run = order.run
    steps_per_epoch = _steps_per_epoch(run.train, worker)
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


def _steps_per_epoch(spec: TrainSpec, worker: Worker) -> int:
    num_images, ranks = worker.images.count("train"), worker.setting.ranks
    steps_per_epoch = spec.steps_per_epoch(num_images, ranks)
    if steps_per_epoch == 0:
        raise UserError(
            f"data.train: {num_images} training images are too few for {ranks} ranks, each of "
            "which needs two; add images or lower fleet.gpus_per_run"
        )
    return steps_per_epoch


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


# Telling and saving


def _started(t: Training, warm: bool) -> Iterator[AnyEvent]:
    t.clock = time.monotonic()
    if t.scribe:
        yield Started(warm=warm, gap_s=t.worker.gap_s())


def _end_epoch(t: Training) -> Iterator[AnyEvent]:
    """Score the selection split; the other ranks wait, and the clock does not run."""
    mean_loss = read_loss(t) / t.position.images
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


def _save(t: Training) -> None:
    """Hand a checkpoint of this step to the background writer."""
    read_loss(t)
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
