"""Timing a run: a few real training steps and forward passes, for estimates.

Network, optimizer, images, augmentation, batch size and unfreeze phases are those of the run; the
weights are random, which takes the same time.
"""

import os
import time
from collections.abc import Iterator
from itertools import count

import torch
from torch import nn

from workers.context import WorkerContext
from workers.data import eval_pixels, normalise
from workers.models.build import create_model, head_parameter_names, preprocessing
from workers.scoring.forward import EVAL_BATCH
from workers.training.batches import TrainBatch, TrainBatches
from workers.training.loss import LossModule
from workers.training.optim import create_average, create_optimizer
from workers.training.train_mode import TrainMode
from workers.training.unfreezing import UnfreezePhase, phases
from workers.types import RunSpec, RunTiming

BUDGET_S = 2.0
"""For the timed steps of a phase; a slow model gets at least one step."""
MAX_TIMED_STEPS = 20


def time_run(run: RunSpec, worker: WorkerContext) -> RunTiming:
    """Time one rank of `run` on the worker's device, which should be idle otherwise."""
    threads = torch.get_num_threads()
    # At most one per core: torch crashes for very many.
    torch.set_num_threads(min(worker.config.threads, os.cpu_count() or 1))
    try:
        net = create_model(
            run.model, len(worker.images.classes), worker.config.data, run.train.drop_path
        ).to(worker.config.device)
        step_s, num_steps = _time_phases(net, run, worker)
        return RunTiming(
            step_s=step_s, score_image_s=_time_scoring(net, worker), num_steps=num_steps
        )
    finally:
        torch.set_num_threads(threads)


def _time_phases(net: nn.Module, run: RunSpec, worker: WorkerContext) -> tuple[float, int]:
    """(seconds per step, steps timed). Frozen layers make some phases cheaper than others."""
    total_s, num_steps = 0.0, 0
    with TrainMode(net, run, worker.config.device) as mode:
        data = TrainBatches(net, run, worker)
        for phase in phases(run):
            mode.begin(phase)
            step_s, num = _time_steps(net, run, worker, data, phase)
            total_s, num_steps = total_s + step_s * phase.num_epochs, num_steps + num
    return total_s / sum(phase.num_epochs for phase in phases(run)), num_steps


def _time_steps(
    net: nn.Module, run: RunSpec, worker: WorkerContext, data: TrainBatches, phase: UnfreezePhase
) -> tuple[float, int]:
    device = worker.config.device
    loss_module = LossModule(net, run.train.smoothing, data.weights).to(device)
    optimizer = create_optimizer(net, run.train, head_parameter_names(net))
    average = create_average(net, run.train)
    ends: list[float] = []
    for epoch, step in _steps(data, phase):
        for batch in step:
            images, targets = data.to_device(batch, epoch)
            with _precision(run, device):
                loss = loss_module(images, targets)
            (loss / len(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(net, step=1 + len(ends))
        _synchronise(device)
        ends.append(time.monotonic())
        if len(ends) > 1 and (ends[-1] - ends[0] > BUDGET_S or len(ends) > MAX_TIMED_STEPS):
            break
    return (ends[-1] - ends[0]) / (len(ends) - 1), len(ends) - 1


def _steps(data: TrainBatches, phase: UnfreezePhase) -> Iterator[tuple[int, list[TrainBatch]]]:
    """(epoch, micro-batches) of optimizer steps, without end."""
    for epoch in count(phase.first):
        plan = data.plan(epoch)
        batches = data.batches(plan, epoch)
        for micros in plan:
            yield epoch, [next(batches) for _ in micros]


def _time_scoring(net: nn.Module, worker: WorkerContext) -> float:
    """Seconds per image of the second of two full evaluation batches."""
    config = preprocessing(net, worker.config.data)
    pixels = eval_pixels(worker.images, "train", config, EVAL_BATCH, worker.progress.touch)
    net.eval()
    began = 0.0
    with torch.inference_mode():
        for _ in range(2):
            began = time.monotonic()
            net(normalise(pixels.to(worker.config.device), config))
            _synchronise(worker.config.device)
    return (time.monotonic() - began) / len(pixels)


def _precision(run: RunSpec, device: str) -> torch.autocast:
    name = run.train.amp_dtype
    dtype = torch.bfloat16 if name == "none" else getattr(torch, name)
    return torch.autocast(device, dtype=dtype, enabled=name != "none")


def _synchronise(device: str) -> None:
    """Wait for a GPU, which works asynchronously."""
    if device == "cuda":
        torch.cuda.synchronize()
