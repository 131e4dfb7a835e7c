"""Rehearsal: a few real training steps and forward passes, timed, so that a plan can be honest.

The network, its optimizer, the images with their decoding and augmentation and the batch size are
those of the run; its weights are random, which costs the same time.
"""

import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from workers.data import (
    epoch_order,
    eval_pixels,
    normalise,
    step_batches,
    train_batches,
    train_transform,
)
from workers.evaluate import EVAL_BATCH
from workers.learning import Decoding, Objective
from workers.model import create_model, head_parameter_names, preprocessing
from workers.optim import create_optimizer
from workers.types import RunSpec, Value
from workers.worker import Worker

BUDGET_S = 2.0
"""For the timed steps of one kind of run; a slow model gets one step all the same."""
MAX_STEPS = 20


class Pace(Value):
    step_s: float
    """Of an optimizer step, data included."""
    score_image_s: float
    """Of an image in evaluation, once its pixels are cached."""
    num_steps: int
    """Timed, after one to warm up."""


def rehearse(run: RunSpec, worker: Worker) -> Pace:
    """Time one rank of `run` on the worker's device, which nothing else should use meanwhile."""
    threads = torch.get_num_threads()
    # More than there are would tell nothing, and torch crashes when asked for very many.
    torch.set_num_threads(min(worker.setting.threads, os.cpu_count() or 1))
    try:
        net = create_model(
            run.model, len(worker.images.classes), worker.setting.data, run.train.drop_path
        ).to(worker.setting.device)
        step_s, num_steps = _time_steps(net, run, worker)
        return Pace(step_s=step_s, score_image_s=_time_scoring(net, worker), num_steps=num_steps)
    finally:
        torch.set_num_threads(threads)


def _time_steps(net: nn.Module, run: RunSpec, worker: Worker) -> tuple[float, int]:
    objective = Objective(net.train(), run.train.smoothing)
    optimizer = create_optimizer(net, run.train, head_parameter_names(net))
    config = preprocessing(net, worker.setting.data)
    ends = []
    for step in _steps(net, run, worker):
        for images, labels in step:
            images = images.to(worker.setting.device)
            if images.dtype == torch.uint8:
                images = normalise(images, config)
            with _precision(run, worker.setting.device):
                loss = objective(images, labels.to(worker.setting.device))
            (loss / len(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        _settle(worker.setting.device)
        ends.append(time.monotonic())
        if len(ends) > 1 and (ends[-1] - ends[0] > BUDGET_S or len(ends) > MAX_STEPS):
            break
    return (ends[-1] - ends[0]) / (len(ends) - 1), len(ends) - 1


def _steps(net: nn.Module, run: RunSpec, worker: Worker) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Micro-batches of one optimizer step after another, epoch after epoch, without end."""
    setting, images = worker.setting, worker.images
    transform = train_transform(run.train, preprocessing(net, setting.data))
    epoch = 0
    while True:
        order = epoch_order(images.count("train"), setting.seed, run.stream, epoch)
        plan = step_batches(order, run.train, setting.ranks, 0)
        batches = train_batches(
            Decoding(images),
            images.labels("train"),
            transform,
            [micro for micros in plan for micro in micros],
            setting.seed,
            run.stream,
            epoch,
            setting.data.workers,
        )
        for micros in plan:
            yield [next(batches) for _ in micros]
        epoch += 1


def _time_scoring(net: nn.Module, worker: Worker) -> float:
    """Seconds per image of a full evaluation batch, the second one."""
    config = preprocessing(net, worker.setting.data)
    pixels = eval_pixels(worker.images, "train", config, count=EVAL_BATCH)
    net.eval()
    began = 0.0
    with torch.inference_mode():
        for _ in range(2):
            began = time.monotonic()
            net(normalise(pixels.to(worker.setting.device), config))
            _settle(worker.setting.device)
    return (time.monotonic() - began) / len(pixels)


def _precision(run: RunSpec, device: str) -> torch.autocast:
    name = run.train.amp_dtype
    dtype = torch.bfloat16 if name == "none" else getattr(torch, name)
    return torch.autocast(device, dtype=dtype, enabled=name != "none")


def _settle(device: str) -> None:
    """A GPU answers before it is done."""
    if device == "cuda":
        torch.cuda.synchronize()
