"""The decodable images of an experiment by split, as written to splits.parquet."""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from workers.config.data import DataConfig
from workers.data.decode import decode
from workers.data.remote_files import with_credentials_of
from workers.data.sources import digit_image, reader
from workers.storage.layout import SPLITS
from workers.storage.store import CorruptFile, MissingFile, Store
from workers.text import without_credentials
from workers.types import FileInfo

_COLUMNS = ("split", "key", "path", "label", "sha256", "offset", "size", "fold")
FOLD = "fold:"
"""Prefix of the names of held-out parts of `train`: `fold:0`, `fold:1`, ..."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image. `sha256` is of its encoded bytes; `path` is empty for a bundled digit."""

    split: str
    key: str
    path: str
    label: int
    sha256: str
    offset: int = 0
    """Position of the first byte in the file, or the row of a Parquet file."""
    size: int | None = None
    """Bytes. None: the whole file or row."""
    fold: int = -1
    """Fold that holds this training image out. -1: no fold."""


class Images:
    """Samples by split, in split order. All of them decoded once; a failing read raises.

    Methods take `fold:<k>`, the part of `train` that a fold holds out, like a split. It is not one
    of `split_names`.
    """

    def __init__(
        self, classes: tuple[str, ...], samples: list[Sample], spec: DataConfig | None = None
    ) -> None:
        self.classes = classes
        self.spec = spec or DataConfig()
        self._reader = reader(self.spec)
        self._splits: dict[str, list[Sample]] = {}
        for sample in samples:
            self._splits.setdefault(sample.split, []).append(sample)
        self._folds: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.split == "train" and sample.fold >= 0:
                self._folds.setdefault(f"{FOLD}{sample.fold}", []).append(sample)
        self.pixels: dict[tuple[str, str, int], Any] = {}
        """Pixels in memory, of `train_pixels` and `eval_pixels`."""

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def samples(self, split: str) -> list[Sample]:
        return (self._folds if split.startswith(FOLD) else self._splits).get(split, [])

    def count(self, split: str) -> int:
        return len(self.samples(split))

    def keys(self, split: str) -> list[str]:
        return [sample.key for sample in self.samples(split)]

    def labels(self, split: str) -> np.ndarray:
        """(N,) int64."""
        return np.array([sample.label for sample in self.samples(split)], dtype=np.int64)

    def class_counts(self, split: str) -> tuple[int, ...]:
        counts = np.bincount(self.labels(split), minlength=len(self.classes))
        return tuple(int(count) for count in counts)

    @property
    def fold_counts(self) -> tuple[int, ...]:
        """Number of training images that each fold holds out. Empty: no folds."""
        return tuple(self.count(f"{FOLD}{fold}") for fold in range(self.spec.folds or 0))

    def train_indices(self, fold: int | None) -> np.ndarray:
        """(N,) int64 indices of the images of `train` that a run of this fold learns from."""
        held_out = [fold is not None and sample.fold == fold for sample in self.samples("train")]
        return np.flatnonzero(~np.array(held_out, dtype=bool)).astype(np.int64)

    def stored_order(self, split: str) -> np.ndarray:
        """(N,) int64 indices of the images in the order of their files, for reading them all."""
        samples = self.samples(split)
        order = sorted(range(len(samples)), key=lambda i: (samples[i].path, samples[i].offset))
        return np.array(order, dtype=np.int64)

    def content(self, split: str, i: int) -> bytes:
        """Encoded bytes of an image. Raises OSError if its file is gone. Digits have no bytes."""
        sample = self.samples(split)[i]
        assert sample.path, "a bundled digit has no file"
        return self._reader.read(sample.path, sample.offset, sample.size)

    def image(self, split: str, i: int) -> Image.Image:
        """RGB image at full size. Raises OSError if its file is gone or broken."""
        sample = self.samples(split)[i]
        if not sample.path:
            return digit_image(int(sample.key))
        return decode(self.content(split, i))

    def fingerprint(self, split: str) -> str:
        """sha256 over (key, label, content) of all samples in split order."""
        digest = hashlib.sha256()
        for sample in self.samples(split):
            digest.update(f"{sample.key}\t{sample.label}\t{sample.sha256}\n".encode())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Content of splits.parquet: a row per sample, and classes and fingerprints as metadata."""
        rows = [sample for split in self.split_names for sample in self.samples(split)]
        columns = {
            "split": pa.array([row.split for row in rows], pa.string()),
            "key": pa.array([row.key for row in rows], pa.string()),
            "path": pa.array([without_credentials(row.path) for row in rows], pa.string()),
            "label": pa.array([row.label for row in rows], pa.int32()),
            "sha256": pa.array([row.sha256 for row in rows], pa.string()),
            "offset": pa.array([row.offset for row in rows], pa.int64()),
            "size": pa.array([row.size for row in rows], pa.int64()),
            "fold": pa.array([row.fold for row in rows], pa.int32()),
        }
        fingerprints = {split: self.fingerprint(split) for split in self.split_names}
        metadata = {"classes": json.dumps(self.classes), "fingerprints": json.dumps(fingerprints)}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, metadata=metadata), buffer)
        return buffer.getvalue()

    def save(self, store: Store) -> FileInfo:
        """Write splits.parquet."""
        content = self.to_bytes()
        store.write(SPLITS, content)
        return FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    @classmethod
    def load(cls, store: Store, spec: DataConfig) -> "Images":
        """The images that preflight wrote, without another scan.

        Raises:
            CorruptFile: the file is missing, or is not what preflight wrote.
        """
        try:
            is_checked = store.is_expected(SPLITS)
            images = cls._loaded(store.read(SPLITS), spec, is_checked)
        except FileNotFoundError as error:
            raise MissingFile(f"{SPLITS} in {store} is missing") from error
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"{SPLITS} in {store} is not a table of images") from error
        return images

    @classmethod
    def _loaded(cls, content: bytes, spec: DataConfig, is_checked: bool) -> "Images":
        """Raises ValueError if the rows have other fingerprints than the file says, which is looked
        at unless the hash of the file was."""
        table = pq.read_table(io.BytesIO(content))
        columns = [table[name].to_pylist() for name in _COLUMNS]
        restored = cache(partial(with_credentials_of, others=_uris(spec)))
        columns[2] = [restored(path) for path in columns[2]]  # thousands of samples share a path
        classes = tuple(json.loads(table.schema.metadata[b"classes"]))
        samples = [Sample(*row) for row in zip(*columns, strict=True)]
        assert spec.source == "digits" or all(sample.path for sample in samples)
        images = cls(classes, samples, spec)
        if is_checked:
            return images
        written = json.loads(table.schema.metadata[b"fingerprints"])
        if written != {split: images.fingerprint(split) for split in images.split_names}:
            raise ValueError("the rows were changed")
        return images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pixels": {}}  # loader processes need no pixels in memory


def _uris(spec: DataConfig) -> tuple[str, ...]:
    """All places that the configuration names; the store holds paths without their credentials."""
    places = (spec.root, *spec.train.values(), spec.val, spec.test, *spec.ood.values())
    return tuple(place for place in places if place is not None)
