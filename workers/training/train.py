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
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.errors import UserError
from workers.models.build import head_parameter_names
from workers.storage.checkpoints import TrainState
from workers.training import train_state
from workers.training.batches import TrainBatches
from workers.training.loop import PhaseOptimizer, TrainLoop, learn, read_loss, steps
from workers.training.loss import LossModule
from workers.training.lr_schedule import Schedule
from workers.training.optim import body_lr, create_optimizer
from workers.training.recorder import RunRecorder
from workers.training.resume import (
    RestoredState,
    WarmState,
    average_at,
    position_at,
    pull_towards_mean,
    restore,
    scaler_of,
    starting_weights,
)
from workers.training.train_mode import TrainMode, contiguous
from workers.training.unfreezing import require_sections
from workers.types import (
    AnyEvent,
    Evaluated,
    Interrupted,
    Started,
    Trained,
    TrainOrder,
    WorkerConfig,
)

GANG_TIMEOUT = timedelta(hours=1)
"""Ranks wait this long for rank 0 to score and write; a hang is the heartbeat's to find."""


def train(order: TrainOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Train `order.run` from `order.start` to `order.stop_step`, or until its patience is over.

    Yields Started, Evaluated after each epoch, Checkpointed for each complete checkpoint (that of
    the moving average before the network's), and at the end Trained, or Interrupted if
    `worker.progress.interrupt` was set. Ranks other than 0 yield nothing.

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
            if t.span != t.learner.span:
                _end_section(t)
                _begin_section(t)
            learn(t, step)
            if t.ends_epoch:
                yield from _end_epoch(t)
            elif t.position.step == order.stop_step:
                yield from _score_here(t)
            if t.checkpoint_due:
                _save(t)
            yield from _written(t)
            if t.reason:
                break
        yield from _finish(t, began)


@contextlib.contextmanager
def accelerated(spec: TrainConfig, setting: WorkerConfig) -> Iterator[Accelerator]:
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


def _gang_settings(setting: WorkerConfig) -> list[Any]:
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
    order: TrainOrder, attempt: int, worker: WorkerContext, accelerator: Accelerator
) -> Iterator[TrainLoop]:
    """The order's start, brought to life; closed and remembered afterwards."""
    net = starting_weights(order, worker)
    require_sections(net, order.run.train)
    past = restore(order, worker)
    is_first = worker.rank == 0
    with TrainMode(net, order.run, worker.setting.device) as manner:
        t = TrainLoop(
            order=order,
            attempt=attempt,
            worker=worker,
            accelerator=accelerator,
            net=net,
            manner=manner,
            intake=TrainBatches(net, order.run, worker),
            position=position_at(order, past),
            average=average_at(net, order.run.train, past) if is_first else None,
            scribe=RunRecorder(worker, order, attempt) if is_first else None,
        )
        if past is not None and order.rejoin is None:
            t.saved = order.start.step, order.start.id
        with t.scribe or contextlib.nullcontext():
            _begin_section(t, past)
            _give_back_scaler(t, past)
            pull_towards_mean(t)
            yield t


def _begin_section(t: TrainLoop, past: RestoredState | None = None) -> None:
    """What learns from the next step on, over a fresh optimizer; or over that of the `past`, if it
    was in the same section."""
    spec = t.run.train
    if t.position.step == t.span.first * t.steps_per_epoch or _forgets(t):
        past = None
    t.manner.begin(t.span)
    if isinstance(past, WarmState):
        raw = past.optimizer
    else:
        raw = create_optimizer(t.net, spec, head_parameter_names(t.net))
    objective, optimizer = t.accelerator.prepare(
        LossModule(t.net, spec.smoothing, t.intake.weights),
        raw,
        # The optimizer's state already lies where torch wants it (step counters on the CPU).
        device_placement=[True, False],
    )
    if isinstance(past, TrainState):
        train_state.restore_optimizer(past, t.net, raw)
    schedule = Schedule(raw, spec, t.steps_per_epoch, t.span.num_epochs)
    t.learner = PhaseOptimizer(t.span, objective, optimizer, schedule)


def _forgets(t: TrainLoop) -> bool:
    """Whether the run was given merged weights at this very step, and a fresh optimizer for them:
    merge.optimizer_state."""
    rejoin = t.order.rejoin
    if rejoin is None or t.position.step != rejoin.own_checkpoint.step:
        return False
    return rejoin.optimizer_state == "reset"


def _end_section(t: TrainLoop) -> None:
    """A gang's wrapper must be gone before the next one: its hooks sit on the parameters."""
    del t.learner
    t.accelerator.free_memory()
    gc.collect()


def _give_back_scaler(t: TrainLoop, past: RestoredState | None) -> None:
    kept = scaler_of(past)
    if t.accelerator.scaler is not None and kept:
        t.accelerator.scaler.load_state_dict(kept)


# Telling and saving


def _started(t: TrainLoop, warm: bool) -> Iterator[AnyEvent]:
    t.clock = time.monotonic()
    if t.scribe:
        yield Started(warm=warm, gap_s=t.worker.gap_s())


def _end_epoch(t: TrainLoop) -> Iterator[AnyEvent]:
    """Score the run; the other ranks wait, and the clock does not run."""
    mean_loss = read_loss(t) / t.position.images
    evaluated = _evaluate(t, mean_loss) if t.scribe else None
    t.position.history.append(_shared_score(t, evaluated))
    if evaluated:
        yield evaluated
    t.images, t.clock = 0, time.monotonic()


def _score_here(t: TrainLoop) -> Iterator[AnyEvent]:
    """Within an epoch, at the boundary of a sync round: for the round alone, so that patience and
    schedule see what they would have seen without it."""
    if t.scribe:
        yield _evaluate(t, read_loss(t) / t.position.images)


def _evaluate(t: TrainLoop, mean_loss: float) -> Evaluated:
    assert t.scribe
    averaged = None if t.average is None else t.average.module
    with t.manner.paused(), _plain(averaged, t.run.train):
        return t.scribe.evaluate(
            t.net,
            averaged,
            step=t.position.step,
            epoch=t.epoch,
            loss=mean_loss,
            lr=body_lr(t.learner.optimizer),
            images_per_s=t.images_per_s,
        )


def _plain(net: nn.Module | None, spec: TrainConfig) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if net is None else contiguous(net, spec.channels_last)


def _shared_score(t: TrainLoop, evaluated: Evaluated | None) -> float:
    """What patience and plateau look at: the same on all ranks, which wait here for rank 0."""
    value = 0.0
    if evaluated is not None:
        value = (evaluated.held_out or evaluated.score).selection(t.worker.setting.metric)
    if t.worker.setting.ranks == 1:
        return value
    told = torch.tensor(value, dtype=torch.float64, device=t.accelerator.device)
    torch.distributed.broadcast(told, src=0)
    return float(told.item())


def _save(t: TrainLoop) -> None:
    """Hand a checkpoint of this step to the background writer."""
    read_loss(t)
    t.saved = t.position.step, f"{t.run.id}/{t.position.step:08d}-{t.attempt}"
    if t.scribe is None:
        return
    averaged = None if t.average is None else t.average.module
    raw, scaler = t.learner.optimizer.optimizer, _scaler_state(t.accelerator)
    state = train_state.capture(t.net, raw, t.position, averaged, scaler=scaler)
    t.scribe.save(t.net, averaged, t.position.step, state)


def _scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else None


def _written(t: TrainLoop) -> Iterator[AnyEvent]:
    if t.scribe:
        yield from t.scribe.completed()


def _finish(t: TrainLoop, began: float) -> Iterator[AnyEvent]:
    """Everything safe in the store, then the last word."""
    step, is_over = t.position.step, t.is_over
    interrupted = step < t.order.stop_step and not is_over
    if interrupted and t.saved[0] != step:
        _save(t)
    _remember(t)
    if t.scribe is None:
        return
    yield from t.scribe.flush()
    if interrupted:
        yield Interrupted(reason=t.reason or "asked to stop")
    else:
        early = is_over and step < t.run.train.epochs * t.steps_per_epoch
        yield Trained(step=step, busy_s=time.monotonic() - began, early=early)


def _remember(t: TrainLoop) -> None:
    """Memory is the last checkpoint, on every rank: a next order from there loads nothing."""
    if t.worker.setting.ranks > 1:
        for buffer in t.net.buffers():  # the others' BatchNorm statistics saw only their images
            torch.distributed.broadcast(buffer, src=0)
    step, id_ = t.saved
    if step != t.position.step:
        return
    raw, scaler = t.learner.optimizer.optimizer, _scaler_state(t.accelerator)
    t.worker.loaded_checkpoint_id = id_
    t.worker.warm_state = WarmState(id_, raw, t.position, scaler, t.average)
