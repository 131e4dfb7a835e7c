"""Training step rate, against a plain loop of timm's loader, optimizer and scheduler.

    python -m tests.benchmarks.train_rate [--model resnet18] [--size 96] [--batch 32] [--steps 12]
                                          [--device cuda] [--amp bfloat16] [--loaders 8]

Both use the same model, images, batch, augmentation, precision, threads and loader processes, in
turns in one process. Ours also has what a fleet needs: seeds per sample and step, records, log and
heartbeat. But it reads decoded images, while timm's loader decodes files. The plain loop fed with
our batches shows the ratio without that difference.

The loss curves of both over a few epochs start from the same weights, with the same order of images
and no random augmentation, so they differ by rounding only.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.data import epoch_order, scan
from workers.models.build import preprocessing
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.store import Store
from workers.training.batches import TrainBatch, TrainBatches
from workers.training.train import train
from workers.types import Checkpoint, RunSpec, TrainOrder, WorkerConfig

NUM_CLASSES = 4
ROUNDS = 5
BORDER = 32
"""Pixels by which images are larger than their crops."""


def measure(
    model: str = "resnet18",
    size: int = 96,
    batch: int = 32,
    steps: int = 12,
    device: str = "cpu",
    amp: str = "none",
    loaders: int = 0,
    threads: int = 1,
) -> dict[str, float]:
    """Median images/s of ours, the plain loop, and the plain loop fed with our batches; ratios."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as root:
        _write_images(Path(root), batch * steps, size)
        data = _data(root, size, loaders)
        spec = TrainConfig(epochs=1, batch_size=batch, hflip=0.5, amp_dtype=amp, smoothing=0.1)
        run = RunSpec(id="ours", model=ModelConfig(name=model), train=spec)
        worker, base = _worker(f"{root}/store", data, run, device)
        folder, place = f"{root}/images/train", torch.device(worker.config.device)

        def timms(model: torch.nn.Module) -> Iterable[TrainBatch]:
            return _timm_loader(worker, model, spec, folder, place)

        def fed(model: torch.nn.Module) -> Iterable[TrainBatch]:
            ours = TrainBatches(model, run, worker)
            return (ours.to_device(batch, 0) for batch in ours.batches(ours.plan(0), 0))

        rates: dict[str, list[float]] = {"ours": [], "plain": [], "fed": []}
        for attempt in range(ROUNDS + 1):
            rates["ours"].append(_ours(worker, run, base, steps, attempt))
            rates["plain"].append(_plain(worker, run, timms, steps))
            rates["fed"].append(_plain(worker, run, fed, steps))
    rate = {name: statistics.median(values[1:]) for name, values in rates.items()}
    curves = loss_curves(model, size, min(batch, 8))
    gap = max(abs(a / b - 1) for a, b in zip(*curves, strict=True))
    return {
        **rate,
        "ratio": rate["ours"] / rate["plain"],
        "ratio_fed": rate["ours"] / rate["fed"],
        "loss_gap": gap,
    }


def loss_curves(
    model: str = "resnet18", size: int = 64, batch: int = 8, epochs: int = 3, **options: Any
) -> tuple[list[float], list[float]]:
    """Mean training loss of every epoch, ours and the plain loop's; `options` are keys of train."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        _write_images(Path(root), 4 * batch, size)
        data = _data(root, size, loaders=0)
        fixed: dict[str, Any] = {"crop": "center", "hflip": 0, "warmup_epochs": 1, "lr": 1e-3}
        spec = TrainConfig(**(fixed | {"epochs": epochs, "batch_size": batch} | options))
        run = RunSpec(id="curve", model=ModelConfig(name=model), train=spec)
        worker, base = _worker(f"{root}/store", data, run, "cpu")
        order = TrainOrder(run=run, start=base, stop_step=4 * epochs)
        weights = {n: t.clone() for n, t in worker.model(run.model).state_dict().items()}
        events = list(train(order, 0, worker))
        ours = [float(e.loss or 0) for e in events if e.kind == "evaluated"]
        return ours, _plain_losses(worker, run, weights, f"{root}/images/train")


def _plain_losses(
    worker: WorkerContext, run: RunSpec, weights: dict[str, Tensor], folder: str
) -> list[float]:
    """Losses of the plain loop, with our order of images."""
    spec, images = run.train, worker.images
    model = timm.create_model(run.model.name, num_classes=NUM_CLASSES)
    model.load_state_dict(weights)
    optimizer = create_optimizer_v2(model, spec.opt, lr=spec.lr, weight_decay=spec.weight_decay)
    per_epoch = spec.steps_per_epoch(images.count("train"), 1)
    schedule, _ = create_scheduler_v2(
        optimizer,
        spec.sched,
        spec.epochs,
        warmup_epochs=spec.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=per_epoch,
    )
    losses, updates = [], 0
    for epoch in range(spec.epochs):
        model.train()
        total = 0.0
        order = epoch_order(images.count("train"), worker.config.seed, run.stream, epoch)
        for x, y in _ordered_loader(worker, model, spec, folder, order):
            loss = functional.cross_entropy(model(x), y, label_smoothing=spec.smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            schedule.step_update(updates)
            total += loss.item() * len(x)
        losses.append(total / len(order))
    return losses


def _ordered_loader(
    worker: WorkerContext, model: torch.nn.Module, spec: TrainConfig, folder: str, order: np.ndarray
) -> Any:
    """timm's loader over timm's dataset, without random augmentation, in a given order."""
    dataset: Any = create_dataset("", folder)
    places = {Path(name).as_posix(): i for i, name in enumerate(dataset.filenames(absolute=True))}
    keys = worker.images.keys("train")
    root = Path(folder).parent
    config = preprocessing(model, worker.config.data)
    subset = Subset(dataset, [places[(root / keys[i]).as_posix()] for i in order])
    loader = create_loader(
        subset,
        input_size=tuple(config["input_size"]),
        batch_size=spec.batch_size,
        is_training=False,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=config["crop_pct"],
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
    )
    dataset.transform = subset.transform  # timm sets it on the outermost dataset only
    return loader


def _data(root: str, size: int, loaders: int) -> DataConfig:
    """Data whose images the cache does not reduce, so both use the same pixels."""
    return DataConfig(
        root=f"{root}/images",
        train={"train": "train"},
        val="val",
        test="val2",
        image_size=size,
        cache_size=size + BORDER,
        workers=loaders,
    )


def _write_images(root: Path, num: int, size: int) -> None:
    noise = np.random.default_rng(0)
    for split, count in (("train", num), ("val", 2 * NUM_CLASSES), ("val2", 2 * NUM_CLASSES)):
        for i in range(count):
            folder = root / "images" / split / f"class{i % NUM_CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 255, (size + BORDER, size + BORDER, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:05d}.jpg")


def _worker(
    uri: str, data: DataConfig, run: RunSpec, device: str
) -> tuple[WorkerContext, Checkpoint]:
    worker_config = WorkerConfig(
        uri=uri,
        seed=0,
        data=data,
        base=BaseConfig(),
        metric="top1",
        batchnorm_samples=64,
        device="cuda" if device == "cuda" else "cpu",
    )
    scan(data, seed=0)[0].save(Store(uri))
    worker = WorkerContext(worker_config)
    weights = worker.model(run.model).state_dict()
    return worker, write_checkpoint(Store(uri), "base/b", None, 0, weights)


def _ours(worker: WorkerContext, run: RunSpec, base: Checkpoint, steps: int, attempt: int) -> float:
    events = train(TrainOrder(run=run, start=base, stop_step=steps), attempt, worker)
    return next(event.images_per_s for event in list(events) if event.kind == "evaluated")


def _plain(
    worker: WorkerContext,
    run: RunSpec,
    batches: Callable[[torch.nn.Module], Iterable[TrainBatch]],
    steps: int,
) -> float:
    spec, device = run.train, torch.device(worker.config.device)
    if device.type == "cuda":  # as ours; for convolutions it is torch's default
        torch.backends.cuda.matmul.allow_tf32 = spec.tf32
    model = timm.create_model(run.model.name, num_classes=NUM_CLASSES).to(device)
    optimizer = create_optimizer_v2(model, spec.opt, lr=spec.lr, weight_decay=spec.weight_decay)
    schedule, _ = create_scheduler_v2(
        optimizer, spec.sched, spec.epochs, step_on_epochs=False, updates_per_epoch=steps
    )
    model.train()
    began, images = 0.0, 0
    for step, (x, y) in enumerate(batches(model)):
        began = began or time.monotonic()
        x, y = x.to(device), y.to(device)
        with torch.autocast(device.type, _dtype(spec), enabled=spec.amp_dtype != "none"):
            loss = functional.cross_entropy(model(x), y, label_smoothing=spec.smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step_update(step + 1)
        images += len(x)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.monotonic() - began)


def _dtype(spec: TrainConfig) -> torch.dtype:
    return torch.float16 if spec.amp_dtype == "float16" else torch.bfloat16


def _timm_loader(
    worker: WorkerContext,
    model: torch.nn.Module,
    spec: TrainConfig,
    folder: str,
    device: torch.device,
) -> Any:
    config = preprocessing(model, worker.config.data)
    return create_loader(
        create_dataset("", folder),
        input_size=tuple(config["input_size"]),
        batch_size=spec.batch_size,
        is_training=True,
        scale=spec.crop,
        hflip=spec.hflip,
        color_jitter=spec.color_jitter,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        num_workers=worker.config.data.workers,
        persistent_workers=False,
        use_prefetcher=device.type == "cuda",
        pin_memory=device.type == "cuda",
        device=device,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--amp", default="none", choices=["none", "bfloat16", "float16"])
    for option, default in (("size", 96), ("batch", 32), ("steps", 12)):
        parser.add_argument(f"--{option}", type=int, default=default)
    for option, default in (("loaders", 0), ("threads", 1)):
        parser.add_argument(f"--{option}", type=int, default=default)
    result = measure(**vars(parser.parse_args()))
    print(
        f"ours {result['ours']:.1f} images/s, plain loop {result['plain']:.1f} images/s: "
        f"{result['ratio']:.2f}x, or {result['ratio_fed']:.2f}x when it is fed with our batches; "
        f"losses differ by at most {result['loss_gap']:.1e}"
    )


if __name__ == "__main__":
    main()
