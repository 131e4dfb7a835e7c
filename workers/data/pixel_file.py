"""Pixels in Arrow IPC files, written image by image and read through a memory map, without copies.

write_images -> MappedImages     training images with their own sizes, in record batches
write_pixels -> mapped_pixels    evaluation images of one size, one block (N, 3, H, W)
"""

import fcntl
import mmap
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

BATCH_BYTES = 32 << 20
"""Size of a record batch of training images. A build has about two in memory."""
IMAGE_SCHEMA = pa.schema(
    [("height", pa.int32()), ("width", pa.int32()), ("pixels", pa.large_binary())],
)
NO_RESERVE = (
    0x4000 if platform.machine() in ("x86_64", "aarch64") and sys.platform == "linux" else 0
)
"""Linux's MAP_NORESERVE, with which files larger than memory can be mapped privately."""
READ_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)
"""Errors of reading a file that is not complete."""


class BatchViews(NamedTuple):
    """Views of one record batch, which need no Arrow after a fork."""

    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    pixels: np.ndarray


def write_images(file: BinaryIO, images: Iterator[Image.Image], mean_bytes: float) -> None:
    """Write RGB images in order. `mean_bytes` of an image decides how many share a record batch."""
    rows = min(1024, max(1, int(BATCH_BYTES / mean_bytes)))
    schema = IMAGE_SCHEMA.with_metadata({"rows": str(rows)})
    with pa.ipc.new_file(file, schema) as writer:
        while arrays := [np.asarray(image) for image in islice(images, rows)]:
            writer.write_batch(_record_batch(arrays, schema))


def _record_batch(images: list[np.ndarray], schema: pa.Schema) -> pa.RecordBatch:
    num = len(images)
    offsets = np.zeros(num + 1, np.int64)
    np.cumsum([image.size for image in images], out=offsets[1:])
    heights, widths = (np.array([image.shape[k] for image in images], np.int32) for k in (0, 1))
    pixels = np.concatenate([image.ravel() for image in images])
    # From buffers: pa.array and to_numpy import pandas if it is installed, which may take longer
    # than the build.
    columns = [
        pa.Array.from_buffers(field.type, num, [None, *map(pa.py_buffer, buffers)])
        for field, buffers in zip(schema, ([heights], [widths], [offsets, pixels]), strict=True)
    ]
    return pa.record_batch(columns, schema=schema)


class MappedImages:
    """The images of a file by index. Raises one of READ_ERRORS if they are not `num` whole images.

    They are views of a shared map: forked processes use the same pages, and the file may be
    deleted.
    """

    def __init__(self, path: Path, num: int) -> None:
        memory = mapped(path)
        whole = pa.py_buffer(memory)
        reader = pa.ipc.open_file(pa.BufferReader(whole))
        self._rows = int(reader.schema.metadata[b"rows"])
        record_batches = (reader.get_batch(k) for k in range(reader.num_record_batches))
        self._batches = [
            _views(batch, np.frombuffer(memory, np.uint8), whole) for batch in record_batches
        ]
        self._num = num
        lengths = [len(batch.heights) for batch in self._batches]
        full, rest = divmod(num, self._rows)
        if lengths != [self._rows] * full + [rest] * (rest > 0):
            raise ValueError(f"{path} does not hold {num} images in batches of {self._rows}")

    def __len__(self) -> int:
        return self._num

    def tensor(self, i: int) -> torch.Tensor:
        """uint8 (3, H, W), channels last in memory."""
        height, width, pixels = self._find(i)
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    def image(self, i: int) -> Image.Image:
        height, width, pixels = self._find(i)
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)

    def _find(self, i: int) -> tuple[int, int, np.ndarray]:
        batch = self._batches[i // self._rows]
        row = i % self._rows
        start, stop = batch.offsets[row : row + 2].tolist()
        return int(batch.heights[row]), int(batch.widths[row]), batch.pixels[start:stop]


def _views(batch: pa.RecordBatch, memory: np.ndarray, whole: pa.Buffer) -> BatchViews:
    height, width, pixels = (column.buffers() for column in batch.columns)
    num = len(batch)
    return BatchViews(
        np.frombuffer(height[1], np.int32)[:num],
        np.frombuffer(width[1], np.int32)[:num],
        np.frombuffer(pixels[1], np.int64)[: num + 1],
        memory[pixels[2].address - whole.address :][: pixels[2].size],
    )


def write_pixels(
    file: BinaryIO, shape: tuple[int, ...], images: Iterable[tuple[int, np.ndarray]]
) -> None:
    """Write uint8 `shape` (N, 3, H, W) from (i, pixels of image i) in any order.

    The file is laid out first as one block, so only one image is in memory.
    """
    blank = np.zeros(shape, np.uint8)  # never written to, so it needs no memory
    kind = pa.fixed_shape_tensor(pa.uint8(), shape[1:])
    values = pa.Array.from_buffers(pa.uint8(), blank.size, [None, pa.py_buffer(blank)])
    rows = pa.FixedSizeListArray.from_arrays(values, type=kind.storage_type)
    block = pa.ExtensionArray.from_storage(kind, rows)
    batch = pa.record_batch([block], names=["pixels"])
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    file.flush()
    with Path(file.name).open("rb") as laid_out:  # without `mapped`: the writer holds the lock
        _, start = _block(mmap.mmap(laid_out.fileno(), 0, access=mmap.ACCESS_READ))
    row_bytes = blank[0].nbytes
    for i, pixels in images:
        # Through the map, a full disk would be a signal instead of an error.
        os.pwrite(file.fileno(), pixels.tobytes(), start + i * row_bytes)


def mapped_pixels(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """uint8 `shape` (N, 3, H, W), a view of the file. Raises one of READ_ERRORS."""
    memory = mapped(path)
    block_shape, start = _block(memory)
    if block_shape != shape:
        raise ValueError(f"{path} holds pixels {block_shape} instead of {shape}")
    num_bytes = int(np.prod(shape))
    return torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes, offset=start).view(shape)


def _block(memory: mmap.mmap) -> tuple[tuple[int, ...], int]:
    """Shape of the block of pixels in a file, and the position of its first byte."""
    whole = pa.py_buffer(memory)
    pixels = pa.ipc.open_file(pa.BufferReader(whole)).get_batch(0).column("pixels")
    data = pixels.storage.values.buffers()[1]
    return (len(pixels), *pixels.type.shape), data.address - whole.address


def mapped(path: Path) -> mmap.mmap:
    """A map of the whole file, with a shared lock that marks the file as used.

    The lock is held while the map lives in this process or one forked from it. The map is private,
    because torch needs writable memory: writes by mistake stay in this process, and pages that are
    only read are shared.
    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        # The map has a duplicate of the file, and with it the lock.
        flags, prot = mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=prot)
