"""Decoded images, cached once per node for all processes. The cache mode changes no bit.

    train_pixels   every training image, decoded and reduced once, with its own size
    eval_pixels    evaluation preprocessing applied once, one block per split

The name of a cache file is a hash of its images' content and of all that affects their pixels, so
experiments on the same images share it.
"""

import errno
import hashlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, features

from workers.data.augment import eval_transform
from workers.data.decode import DRAFT, decode, reduce, reduced_size
from workers.data.images import Images, Sample
from workers.data.pixel_file import (
    READ_ERRORS,
    MappedImages,
    mapped_pixels,
    write_images,
    write_pixels,
)
from workers.errors import UserError
from workers.storage.node_cache import Touch, disk_cache, memory_cache

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

FORMAT = 1
"""Version of the cache files, part of their name."""
MIN_CACHED_IMAGES = 64
"""`auto` caches no fewer images, because decoding them again is faster than building a file."""
NUM_PROBED = 16
"""Number of images that are decoded to estimate the size of all."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors of a full disk. It costs time but no experiment: images are then decoded in every run."""
SYNC_EVERY = 1024
"""Images between two waits for the disk."""
OVERHEAD_BYTES = 1 << 16
"""Approximate bytes of a file beside its pixels."""


class DecodedImages:
    """Training images in split order, decoded and reduced on every access."""

    def __init__(self, images: Images, size: int) -> None:
        self._images, self._size = images, size

    def __len__(self) -> int:
        return self._images.count("train")

    def __getitem__(self, i: int) -> Image.Image:
        """RGB."""
        return reduced_image(self._images, i, self._size)

    def tensor(self, i: int) -> torch.Tensor:
        """uint8 (3, H, W), channels last in memory. It must not be written to."""
        return torch.from_numpy(np.array(self[i])).permute(2, 0, 1)


class CachedImages:
    """Training images in split order, from a cache file.

    `rows` (N,) maps the place in the split to the place in the file. A loader process that was not
    forked opens the file again. Tensors are views of the file.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        self._path, self._rows = path, rows
        self._mapped: MappedImages | None = MappedImages(path, len(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Image.Image:
        return self._opened.image(int(self._rows[i]))

    def tensor(self, i: int) -> torch.Tensor:
        return self._opened.tensor(int(self._rows[i]))

    @property
    def _opened(self) -> MappedImages:
        if self._mapped is None:
            self._mapped = MappedImages(self._path, len(self._rows))
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}


TrainPixels = DecodedImages | CachedImages


def train_pixels(
    images: Images, preprocessing: dict[str, Any], touch: Touch = lambda: None
) -> TrainPixels:
    """The training images, cached as `data.cache` says.

    `touch` is called while they are decoded, also by another process. A cache without room is not
    used. Raises UserError for one that cannot be opened.
    """
    size = reduced_size(images.spec, preprocessing)
    key = ("train", f"reduced to {size}", images.count("train"))
    if key not in images.pixels:
        images.pixels[key] = _train_pixels(images, size, touch)
    pixels: TrainPixels = images.pixels[key]
    return pixels


def eval_pixels(
    images: Images,
    split: str,
    preprocessing: dict[str, Any],
    count: int | None = None,
    touch: Touch = lambda: None,
) -> torch.Tensor:
    """timm's evaluation transform of a split's images: uint8 (N, 3, H, W) in split order.

    `count` takes the first images only. The result is a view of a cache file or shared through
    `images`, and must not be written to.
    """
    num = images.count(split) if count is None else min(count, images.count(split))
    key = (split, json.dumps(preprocessing, sort_keys=True), num)
    if key not in images.pixels:
        # Runs mostly share one preprocessing; pixels of others would fill the memory.
        current = {
            other: value
            for other, value in images.pixels.items()
            if other[1] == key[1] or not isinstance(value, torch.Tensor)
        }
        images.pixels = current | {key: _eval_pixels(images, split, preprocessing, num, touch)}
    pixels: torch.Tensor = images.pixels[key]
    return pixels


def normalise(pixels: torch.Tensor, preprocessing: dict[str, Any]) -> torch.Tensor:
    """uint8 (..., 3, H, W) -> float32, bit for bit as torchvision's ToTensor and Normalize."""
    mean = torch.tensor(preprocessing["mean"], device=pixels.device).view(-1, 1, 1)
    std = torch.tensor(preprocessing["std"], device=pixels.device).view(-1, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)  # one copy, then in place


def _train_pixels(images: Images, size: int, touch: Touch) -> TrainPixels:
    """Training images, whose order in the cache file is that of the image files.

    So they are read from end to end, and splits with other seeds share the cache file.
    """
    samples, order = images.samples("train"), images.stored_order("train").tolist()
    read = partial(reduced_image, images, size=size)
    rows = np.empty(len(order), np.int32)
    rows[order] = np.arange(len(order), dtype=np.int32)

    @cache
    def mean_bytes() -> float:
        probed = [read(i) for i in range(min(len(samples), NUM_PROBED))]
        return sum(3 * image.width * image.height for image in probed) / len(probed)

    cached = _from_cache(
        images,
        [samples[i] for i in order],
        {"reduced to": size},
        lambda: int(1.1 * len(samples) * mean_bytes()) + OVERHEAD_BYTES,
        lambda file: write_images(
            file, _synced(file, in_threads(read, order, touch)), mean_bytes()
        ),
        lambda path: CachedImages(path, rows),
        touch,
    )
    return DecodedImages(images, size) if cached is None else cached


def _eval_pixels(
    images: Images, split: str, preprocessing: dict[str, Any], num: int, touch: Touch
) -> torch.Tensor:
    shape = (num, *preprocessing["input_size"])
    order = [i for i in images.stored_order(split).tolist() if i < num]
    transform = eval_transform(preprocessing, normalize=False)

    def render(i: int) -> tuple[int, np.ndarray]:
        return i, transform(_whole_image(images, split, i)).numpy()

    cached = _from_cache(
        images,
        images.samples(split)[:num],
        preprocessing,
        lambda: math.prod(shape) + OVERHEAD_BYTES,
        lambda file: write_pixels(file, shape, _synced(file, in_threads(render, order, touch))),
        lambda path: mapped_pixels(path, shape),
        touch,
    )
    if cached is not None:
        return cached
    pixels = torch.empty(shape, dtype=torch.uint8)
    for i, row in in_threads(render, order, touch):
        pixels[i] = torch.from_numpy(row)
    return pixels


def _synced(file: BinaryIO, rows: Iterator[Result]) -> Iterator[Result]:
    """The rows; what was written of them goes to the disk now and then, so that the end of a large
    file waits for little."""
    for number, row in enumerate(rows, start=1):
        yield row
        if number % SYNC_EVERY == 0:
            os.fdatasync(file.fileno())


def _whole_image(images: Images, split: str, i: int) -> Image.Image:
    try:
        return images.image(split, i)
    except OSError as error:
        key = images.samples(split)[i].key
        raise OSError(f"{split} image {key} can no longer be read: {error}") from error


def reduced_image(images: Images, i: int, size: int) -> Image.Image:
    """RGB image `i` of the training split, reduced. Raises OSError, naming it, if it is gone."""
    sample = images.samples("train")[i]
    try:
        if not sample.path:
            return reduce(images.image("train", i), size)
        return reduce(decode(images.content("train", i), at_least=DRAFT * size), size)
    except OSError as error:
        raise OSError(f"training image {sample.key} can no longer be read: {error}") from error


def _from_cache(
    images: Images,
    samples: list[Sample],
    shaping: dict[str, Any],
    need: Callable[[], int],
    build: Callable[[BinaryIO], None],
    opened: Callable[[Path], Result],
    touch: Touch,
) -> Result | None:
    """The cache file of these samples as `opened` returns it. None: they are not cached."""
    mode = images.spec.cache
    if mode == "off" or not samples or (mode == "auto" and not _is_worth_caching(samples)):
        return None
    name = f"{content_key(samples, shaping)}.arrow"
    try:
        node_cache = memory_cache(READ_ERRORS) if mode == "memory" else disk_cache(READ_ERRORS)
        return node_cache.get(name, need, build, opened, touch)
    except OSError as error:
        if error.errno is None:  # an image cannot be read, which is no fault of the cache
            raise
        if mode == "auto" or error.errno in NO_ROOM:
            logger.warning("images are decoded in every run, not cached: %s", error)
            return None
        raise UserError(
            f"data.cache={mode} cannot be used ({error}); set data.cache=off, or "
            "SOUPFLEET_CACHE to a folder that can be written to"
        ) from error


def _is_worth_caching(samples: list[Sample]) -> bool:
    """Whether there are enough images, which are no bundled digits: those need no decoding."""
    return len(samples) >= MIN_CACHED_IMAGES and bool(samples[0].path)


def content_key(samples: list[Sample], shaping: dict[str, Any]) -> str:
    """Hash of these contents in this order, and of all that affects their pixels.

    Labels and keys are not part of it, so all experiments on the same images share a file.
    """
    made_by = {package: version(package) for package in ("pillow", "timm", "torchvision")}
    head = {"format": FORMAT, "codec": features.version("jpg"), **made_by, "shaping": shaping}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for sample in samples:
        digest.update(sample.sha256.encode())
    return digest.hexdigest()[:32]


def in_threads(do: Callable[[int], Result], indices: list[int], touch: Touch) -> Iterator[Result]:
    """do(i) for every index in order, in threads: Pillow releases the interpreter's lock.

    `touch` is called after every result.
    """
    threads = min(16, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for i in indices:
            waiting.append(pool.submit(do, i))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
                touch()
        while waiting:
            yield waiting.popleft().result()
            touch()
