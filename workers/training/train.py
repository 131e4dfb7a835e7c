"""Training: one order, from a checkpoint to a step. The only file that imports Accelerate.

    start --> TrainLoop --> step, step, ... --> end of epoch: score --> checkpoint --> Trained
                 ^                                                         |
                 +------- own checkpoint: weights, optimizer, position ----+   or Interrupted

Every random number is a function of (seed, stream, epoch, sample) or (seed, stream, step,
micro-batch, rank), and every rate of the step. So a run that was stopped and resumed, on any
worker, writes the same bytes. Ranks of a gang run in step; only rank 0 scores, writes and yields.
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
from workers.training.loop import PhaseOptimizer, Step, TrainLoop, learn, read_loss, steps
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
from workers.training.unfreezing import require_model_features
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
"""Ranks wait this long for rank 0 to score and write; heartbeats detect a hang earlier."""

COMPILE_LIMIT_S = 1800.0
"""Longest time that torch.compile may take for one step: minutes for a large network when several
ranks share few cores."""


def train(order: TrainOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Train `order.run` from `order.start` to `order.stop_step`, or until its patience is over.

    Yields Started, Evaluated after each epoch, Checkpointed for each complete checkpoint (the
    moving average's before the network's), and at the end Trained, or Interrupted if
    `worker.progress.interrupt` was set. Ranks other than 0 yield nothing.

    Raises:
        FloatingPointError: the loss is not finite.
        UserError: timm or the device does not support the run's options.
    """
    began, spec = time.monotonic(), order.run.train
    warm = worker.holds(order.run.model, spec.drop_path)
    with (
        accelerated(spec, worker.config) as accelerator,
        _training(order, attempt, worker, accelerator) as t,
    ):
        for index, step in enumerate(steps(t)):
            if index == 0:
                yield from _started(t, warm)
            if t.phase != t.optimization.phase:
                _end_phase(t)
                _begin_phase(t)
            with _compiling(t, step):
                learn(t, step)
            if t.ends_epoch:
                yield from _end_epoch(t)
            elif t.position.step == order.stop_step:
                yield from _score_mid_epoch(t)
            if t.checkpoint_due:
                _save(t)
            yield from _completed(t)
            if t.stop_reason:
                break
        yield from _finish(t, began)


@contextlib.contextmanager
def accelerated(spec: TrainConfig, config: WorkerConfig) -> Iterator[Accelerator]:
    """A fresh Accelerator, whose process-wide state is reset on exit.

    Otherwise the next order would have this one's precision and process group.
    """
    if spec.amp_dtype == "float16" and config.device == "cpu":
        raise UserError("train.amp_dtype: float16 needs a GPU; use bfloat16 or none on a CPU")
    if config.ranks > 1:
        # Otherwise Accelerate chooses the number of threads, which changes the bits.
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    precision = {"none": "no", "bfloat16": "bf16", "float16": "fp16"}[spec.amp_dtype]
    try:
        yield Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=precision,
            kwargs_handlers=_gang_settings(config) if config.ranks > 1 else None,
        )
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()  # the wrapper has hooks on parameters that outlive it
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def _gang_settings(config: WorkerConfig) -> list[Any]:
    # Looking for unused parameters keeps the order of gradients in the buckets as in the first
    # step, so that after a resume more than two ranks add them up in the same order.
    fixed_buckets = config.device == "cpu"
    return [
        DistributedDataParallelKwargs(find_unused_parameters=fixed_buckets),
        InitProcessGroupKwargs(timeout=GANG_TIMEOUT),
    ]


# Beginning


@contextlib.contextmanager
def _training(
    order: TrainOrder, attempt: int, worker: WorkerContext, accelerator: Accelerator
) -> Iterator[TrainLoop]:
    """The loop at the order's start; its log and mode are closed on exit."""
    net = starting_weights(order, worker)
    require_model_features(net, order.run.train)
    restored = restore(order, worker)
    is_first = worker.rank == 0
    with TrainMode(net, order.run, worker.config.device) as mode:
        t = TrainLoop(
            order=order,
            attempt=attempt,
            worker=worker,
            accelerator=accelerator,
            net=net,
            mode=mode,
            data=TrainBatches(net, order.run, worker),
            position=position_at(order, restored),
            average=average_at(net, order.run.train, restored) if is_first else None,
            recorder=RunRecorder(worker, order, attempt) if is_first else None,
        )
        if restored is not None and order.rejoin is None:
            t.last_saved = order.start.step, order.start.id
        with t.recorder or contextlib.nullcontext():
            _begin_phase(t, restored)
            _restore_scaler(t, restored)
            pull_towards_mean(t)
            yield t


def _begin_phase(t: TrainLoop, restored: RestoredState | None = None) -> None:
    """Set up the phase of the next step, with a fresh optimizer, or the restored one if that is of
    the same phase."""
    spec = t.run.train
    if t.position.step == t.phase.first * t.steps_per_epoch or _resets_optimizer(t):
        restored = None
    t.mode.begin(t.phase)
    if isinstance(restored, WarmState):
        raw = restored.optimizer
    else:
        raw = create_optimizer(t.net, spec, head_parameter_names(t.net))
    with _waiting_for_ranks(t):
        loss_module, optimizer = t.accelerator.prepare(
            LossModule(t.net, spec.smoothing, t.data.weights),
            raw,
            # The optimizer's state is already where torch wants it (step counters on the CPU).
            device_placement=[True, False],
        )
    if isinstance(restored, TrainState):
        train_state.restore_optimizer(restored, t.net, raw)
    schedule = Schedule(raw, spec, t.steps_per_epoch, t.phase.num_epochs)
    t.optimization = PhaseOptimizer(t.phase, loss_module, optimizer, schedule)


def _waiting_for_ranks(t: TrainLoop) -> contextlib.AbstractContextManager[None]:
    """The first exchange of a gang waits for the rank that builds the cache of its node."""
    if t.worker.config.ranks == 1:
        return contextlib.nullcontext()
    return t.worker.progress.busy("waiting for the other ranks", GANG_TIMEOUT.total_seconds())


def _resets_optimizer(t: TrainLoop) -> bool:
    """Whether the run got merged weights at this step, with merge.optimizer_state: reset."""
    rejoin = t.order.rejoin
    if rejoin is None or t.position.step != rejoin.own_checkpoint.step:
        return False
    return rejoin.optimizer_state == "reset"


def _compiling(t: TrainLoop, step: Step) -> contextlib.AbstractContextManager[None]:
    """torch.compile works silently at the first step of every batch size and phase."""
    key = t.optimization.phase.first, step.num_images, step.num_micro_batches
    if not t.run.train.compile or key in t.compiled:
        return contextlib.nullcontext()
    t.compiled.add(key)
    return t.worker.progress.busy("compiling the network", COMPILE_LIMIT_S)


def _end_phase(t: TrainLoop) -> None:
    """Drop a gang's wrapper before the next one is made: it has hooks on the parameters."""
    del t.optimization
    t.accelerator.free_memory()
    gc.collect()


def _restore_scaler(t: TrainLoop, restored: RestoredState | None) -> None:
    state = scaler_of(restored)
    if t.accelerator.scaler is not None and state:
        t.accelerator.scaler.load_state_dict(state)


# Events and checkpoints


def _started(t: TrainLoop, warm: bool) -> Iterator[AnyEvent]:
    t.clock = time.monotonic()
    if t.recorder:
        yield Started(warm=warm, gap_s=t.worker.gap_s())


def _end_epoch(t: TrainLoop) -> Iterator[AnyEvent]:
    """Score the run while other ranks wait. The rate of images does not count this time."""
    mean_loss = read_loss(t) / t.position.images
    evaluated = _evaluate(t, mean_loss) if t.recorder else None
    t.position.history.append(_shared_score(t, evaluated))
    if evaluated:
        yield evaluated
    t.num_images, t.clock = 0, time.monotonic()


def _score_mid_epoch(t: TrainLoop) -> Iterator[AnyEvent]:
    """Score within an epoch, at the boundary of a sync round. The score is for the round alone:
    patience and schedule do not use it."""
    if t.recorder:
        yield _evaluate(t, read_loss(t) / t.position.images)


def _evaluate(t: TrainLoop, mean_loss: float) -> Evaluated:
    assert t.recorder
    averaged = None if t.average is None else t.average.module
    with t.mode.paused(), _contiguous(averaged, t.run.train):
        return t.recorder.evaluate(
            t.net,
            averaged,
            step=t.position.step,
            epoch=t.epoch,
            loss=mean_loss,
            lr=body_lr(t.optimization.optimizer),
            images_per_s=t.images_per_s,
        )


def _contiguous(
    net: nn.Module | None, spec: TrainConfig
) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if net is None else contiguous(net, spec.channels_last)


def _shared_score(t: TrainLoop, evaluated: Evaluated | None) -> float:
    """The score for patience and plateau, the same on all ranks, which wait here for rank 0."""
    value = 0.0
    if evaluated is not None:
        value = (evaluated.held_out or evaluated.score).selection(t.worker.config.metric)
    if t.worker.config.ranks == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=t.accelerator.device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared.item())


def _save(t: TrainLoop) -> None:
    """Hand a checkpoint of this step to the background writer."""
    read_loss(t)
    t.last_saved = t.position.step, f"{t.run.id}/{t.position.step:08d}-{t.attempt}"
    if t.recorder is None:
        return
    averaged = None if t.average is None else t.average.module
    raw, scaler = t.optimization.optimizer.optimizer, _scaler_state(t.accelerator)
    state = train_state.capture(t.net, raw, t.position, averaged, scaler=scaler)
    t.recorder.save(t.net, averaged, t.position.step, state)


def _scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else None


def _completed(t: TrainLoop) -> Iterator[AnyEvent]:
    if t.recorder:
        yield from t.recorder.completed()


def _finish(t: TrainLoop, began: float) -> Iterator[AnyEvent]:
    """Wait until everything is in the store, then yield the last event."""
    step, is_over = t.position.step, t.is_over
    interrupted = step < t.order.stop_step and not is_over
    if interrupted and t.last_saved[0] != step:
        _save(t)
    _keep_warm(t)
    if t.recorder is None:
        return
    yield from t.recorder.flush()
    if interrupted:
        yield Interrupted(reason=t.stop_reason or "asked to stop")
    else:
        early = is_over and step < t.run.train.epochs * t.steps_per_epoch
        yield Trained(step=step, busy_s=time.monotonic() - began, early=early)


def _keep_warm(t: TrainLoop) -> None:
    """Make memory equal to the last checkpoint on every rank, so that the next order need not load
    it."""
    if t.worker.config.ranks > 1:
        for buffer in t.net.buffers():  # BatchNorm statistics are of each rank's own images
            torch.distributed.broadcast(buffer, src=0)
    step, id_ = t.last_saved
    if step != t.position.step:
        return
    raw, scaler = t.optimization.optimizer.optimizer, _scaler_state(t.accelerator)
    t.worker.loaded_checkpoint_id = id_
    t.worker.warm_state = WarmState(id_, raw, t.position, scaler, t.average)
