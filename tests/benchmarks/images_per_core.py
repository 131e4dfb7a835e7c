"""Training images per second and core: our cache, torchvision's ImageFolder, timm's own loader.

    python -m tests.benchmarks.images_per_core [--images 512] [--photo 375] [--native]

All three use the same images and augmentation (random resized crop to 224 px, flip, normalised),
no loader processes and one thread, in turns. Then two processes do the same at a time, as two runs
of a node. Seconds are CPU seconds, which other processes do not affect.

The images are birds of CUB from $SOUPFLEET_DATA/cub100_128, 128 px wide. They are enlarged once to
the size of a photo (shorter side 375 px, JPEG quality 90), or kept with --native. An enlarged image
is smooth and decodes faster than a real photo, so the ratios are rather too small. Without that
folder, images of noise replace them.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from workers.config.data import DataConfig
from workers.config.train import TrainConfig
from workers.data import (
    Images,
    epoch_order,
    normalise,
    scan,
    step_batches,
    train_batches,
    train_pixels,
    train_transform,
)

SIZE = 224
BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG: dict[str, Any] = {
    "input_size": (3, SIZE, SIZE),
    "interpolation": "bicubic",
    "mean": MEAN,
    "std": STD,
    "crop_pct": 0.875,
    "crop_mode": "center",
}
SPEC = TrainConfig(batch_size=BATCH, hflip=0.5)
ROUNDS = 3
Epoch = Callable[[], int]


def measure(images: int = 512, photo: int = 375, native: bool = False) -> dict[str, Any]:
    """Images per CPU second of every loader for one and two runs at a time, their ratios, and the
    seconds to build the cache, also in epochs of ImageFolder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        os.environ["SOUPFLEET_CACHE"] = f"{root}/cache"
        source = _write_images(Path(root) / "images", images, None if native else photo)
        spec = DataConfig(root=root, train="images", cache="disk", val_fraction=0.01)
        scanned, _, _ = scan(spec.model_copy(update={"test_fraction": 0.01}), seed=0)
        build = _seconds(lambda: len(train_pixels(scanned, CONFIG)))
        loaders = _loaders(scanned, f"{root}/images")
        single, together = _rates(loaders), _in_two_processes(loaders)
    figures: dict[str, Any] = {"source": source, "build_s": build}
    for name in loaders:
        figures[name] = single[name]
        figures[f"{name}_two_runs"] = together[name]
    for yardstick in ("imagefolder", "timm"):
        figures[f"over_{yardstick}"] = single["ours"] / single[yardstick]
        figures[f"over_{yardstick}_two_runs"] = together["ours"] / together[yardstick]
    figures["build_epochs"] = build * single["imagefolder"] / scanned.count("train")
    return figures


def _write_images(folder: Path, num: int, photo: int | None) -> str:
    """Write class folders of JPEGs; returns their description."""
    data = os.environ.get("SOUPFLEET_DATA")
    pictures = _birds(Path(data) / "cub100_128") if data else _noise()
    for i in range(num):
        name, picture = next(pictures)
        if photo is not None:
            scale = photo / min(picture.size)
            size = (round(picture.width * scale), round(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture.save(folder / name / f"{i:05d}.jpg", quality=90)
    kind = "birds of CUB" if data else "images of noise"
    size_text = f"enlarged to {photo} px" if photo else "at their own 128 px"
    return f"{num} {kind}, {size_text}"


def _birds(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """All birds, over and over."""
    while True:
        for shard in sorted(folder.glob("train-*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                        picture = Image.open(io.BytesIO(file.read())).convert("RGB")
                        yield member.name.partition("/")[0], picture


def _noise() -> Iterator[tuple[str, Image.Image]]:
    noise = np.random.default_rng(0)
    while True:
        for name in ("a", "b"):
            coarse = Image.fromarray(noise.integers(0, 256, (16, 21, 3), dtype=np.uint8))
            grain = noise.normal(0, 10, (128, 168, 3))
            cloud = np.asarray(coarse.resize((168, 128), Image.Resampling.BICUBIC)) + grain
            yield name, Image.fromarray(cloud.clip(0, 255).astype(np.uint8))


def _loaders(found: Images, folder: str) -> dict[str, Epoch]:
    """An epoch of every loader; returns its number of images."""
    return {
        "ours": lambda: _ours(found),
        "imagefolder": _count(_imagefolder(folder)),
        "timm": _count(_timm(folder)),
    }


def _ours(found: Images) -> int:
    labels = found.labels("train")
    steps = step_batches(epoch_order(len(labels), 0, "run", 0), SPEC, ranks=1, rank=0)
    plan = [micro for micros in steps for micro in micros]
    pixels = train_pixels(found, CONFIG)
    transform = train_transform(SPEC, CONFIG)
    batches = train_batches(pixels, labels, transform, plan, 0, "run", 0, workers=0)
    return sum(len(normalise(x, CONFIG)) for x, _ in batches)


def _imagefolder(folder: str) -> object:
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, SPEC.crop, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(SPEC.hflip),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(datasets.ImageFolder(folder, augment), batch_size=BATCH, shuffle=True)


def _timm(folder: str) -> object:
    return create_loader(
        create_dataset("", folder),
        input_size=CONFIG["input_size"],
        batch_size=BATCH,
        is_training=True,
        scale=SPEC.crop,
        hflip=SPEC.hflip,
        color_jitter=None,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
    )


def _count(loader: Any) -> Epoch:
    return lambda: sum(len(x) for x, _ in loader)


def _rates(loaders: dict[str, Epoch], start: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Median images per CPU second; `start` is called before every epoch."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS + 1):
        for name, epoch in loaders.items():
            start()
            began = time.process_time()
            rates[name].append(epoch() / (time.process_time() - began))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}


def _in_two_processes(loaders: dict[str, Epoch]) -> dict[str, float]:
    """Mean rates of two processes that run at the same time."""
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(2), fork.SimpleQueue()

    def work(barrier: Barrier) -> None:
        results.put(_rates(loaders, barrier.wait))

    processes = [fork.Process(target=work, args=(barrier,)) for _ in range(2)]
    for process in processes:
        process.start()
    all_rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {name: statistics.mean(rates[name] for rates in all_rates) for name in loaders}


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process and its threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--photo", type=int, default=375)
    parser.add_argument("--native", action="store_true")
    figures = measure(**vars(parser.parse_args()))
    print(figures["source"])
    for name in ("ours", "imagefolder", "timm"):
        print(f"{name:12} {figures[name]:6.0f} images per core second, ", end="")
        print(f"{figures[f'{name}_two_runs']:6.0f} beside a second run")
    for yardstick in ("imagefolder", "timm"):
        print(f"ours over {yardstick}: {figures[f'over_{yardstick}']:.2f}x, ", end="")
        print(f"{figures[f'over_{yardstick}_two_runs']:.2f}x beside a second run")
    print(f"the cache took {figures['build_s']:.1f} core seconds to build, ", end="")
    print(f"as long as {figures['build_epochs']:.2f} epochs of ImageFolder")


if __name__ == "__main__":
    main()
