"""Runs small enough for tests: 32-pixel digits, two dozen of them, and timm's test models."""

from pathlib import Path
from typing import Any

import torch

from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.data import Images, scan
from workers.heartbeat import Progress
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.store import Store
from workers.training.train import train
from workers.types import AnyEvent, Checkpoint, RunSpec, TrainOrder, WorkerConfig

DATA = DataConfig(source="digits", image_size=32)
NUM_TRAIN, NUM_VAL = 22, 10
VIT = ModelConfig(name="test_vit", kwargs={"drop_rate": 0.1})
RESNET = ModelConfig(name="test_resnet")


def make_setting(folder: Path, folds: int | None = None, **changes: Any) -> WorkerConfig:
    """An experiment whose splits are in the store, as preflight leaves them."""
    data = DATA.model_copy(update={"folds": folds})
    torch.set_num_threads(1)
    config = WorkerConfig(
        uri=str(folder),
        seed=3,
        data=data,
        base=BaseConfig(),
        metric="top1",
        batchnorm_samples=16,
        **changes,
    )
    images, _, _ = scan(data, seed=3)
    few = [*images.samples("train")[:NUM_TRAIN], *images.samples("val")[:NUM_VAL]]
    Images(images.classes, few, data).save(Store(config.uri))
    return config


def make_base(config: WorkerConfig, model: ModelConfig) -> Checkpoint:
    """A seeded random network as `base/<model>`."""
    torch.manual_seed(0)
    net = WorkerContext(config).model(model)
    name = f"base/{model.name}"
    return write_checkpoint(Store(config.uri), name, None, 0, net.state_dict())


def make_run(id_: str = "r", model: ModelConfig = VIT, **train_options: Any) -> RunSpec:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.05}
    spec = TrainConfig(**(options | train_options))
    return RunSpec(id=id_, seed=1, model=model, train=spec)


def last_step(run: RunSpec, ranks: int = 1) -> int:
    return run.train.epochs * run.train.steps_per_epoch(NUM_TRAIN, ranks)


def perform(
    worker: WorkerContext,
    run: RunSpec,
    start: Checkpoint,
    stop: int | None = None,
    attempt: int = 0,
) -> list[AnyEvent]:
    order = TrainOrder(run=run, start=start, stop_step=stop or last_step(run))
    return list(train(order, attempt, worker))


def interrupted_after(
    worker: WorkerContext,
    run: RunSpec,
    start: Checkpoint,
    num_steps: int,
    attempt: int = 0,
    stop: int | None = None,
) -> list[AnyEvent]:
    """Events of an order that is asked to stop while its step `num_steps` runs."""
    order = TrainOrder(run=run, start=start, stop_step=stop or last_step(run))

    class Interrupting(Progress):
        def touch(self, **facts: Any) -> None:
            super().touch(**facts)
            if facts.get("step") == num_steps - 1 or num_steps == 1:
                self.interrupt = "grace period"

    worker.progress = Interrupting()
    events = list(train(order, attempt, worker))
    worker.progress = Progress()
    return events


def checkpoints(events: list[AnyEvent]) -> list[Checkpoint]:
    return [event.checkpoint for event in events if event.kind == "checkpoint"]
