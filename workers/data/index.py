"""Images: the decodable images of an experiment by split, as written to splits.parquet."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from workers.data.decode import decode
from workers.data.sources import digit_image
from workers.spec import DataSpec
from workers.storage import SPLITS, Store


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: `sha256` is of its file's bytes, `path` is empty for a bundled digit."""

    split: str
    key: str
    path: str
    label: int
    sha256: str


class Images:
    """Samples by split, in split order. Decodability is settled; a failing read raises."""

    def __init__(
        self, classes: tuple[str, ...], samples: list[Sample], spec: DataSpec | None = None
    ) -> None:
        self.classes, self.spec = classes, spec or DataSpec()
        self._splits: dict[str, list[Sample]] = {}
        for sample in samples:
            self._splits.setdefault(sample.split, []).append(sample)
        self.pixels: dict[tuple[str, str, int], Any] = {}
        """Evaluation pixels, kept by `eval_pixels`."""

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def samples(self, split: str) -> list[Sample]:
        return self._splits.get(split, [])

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

    def image(self, split: str, i: int) -> Image.Image:
        """RGB, at the size of its file. Raises OSError where the file is gone or broken."""
        sample = self.samples(split)[i]
        if not sample.path:
            return digit_image(int(sample.key))
        return decode(Path(sample.path).read_bytes())

    def content(self, split: str, i: int) -> bytes:
        """Encoded bytes of the image's file."""
        return Path(self.samples(split)[i].path).read_bytes()

    def fingerprint(self, split: str) -> str:
        """sha256 over (key, label, content) of every sample in split order."""
        digest = hashlib.sha256()
        for sample in self.samples(split):
            digest.update(f"{sample.key}\t{sample.label}\t{sample.sha256}\n".encode())
        return digest.hexdigest()

    def save(self, store: Store) -> None:
        """Writes splits.parquet: one row per sample, classes and fingerprints in the metadata."""
        rows = [sample for split in self.split_names for sample in self.samples(split)]
        columns = {
            "split": pa.array([row.split for row in rows], pa.string()),
            "key": pa.array([row.key for row in rows], pa.string()),
            "path": pa.array([row.path for row in rows], pa.string()),
            "label": pa.array([row.label for row in rows], pa.int32()),
            "sha256": pa.array([row.sha256 for row in rows], pa.string()),
        }
        fingerprints = {split: self.fingerprint(split) for split in self.split_names}
        metadata = {"classes": json.dumps(self.classes), "fingerprints": json.dumps(fingerprints)}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, metadata=metadata), buffer)
        store.write(SPLITS, buffer.getvalue())

    @classmethod
    def load(cls, store: Store, spec: DataSpec) -> "Images":
        """What preflight settled; nothing is scanned again."""
        table = pq.read_table(io.BytesIO(store.read(SPLITS)))
        columns = [table[name].to_pylist() for name in ("split", "key", "path", "label", "sha256")]
        classes = tuple(json.loads(table.schema.metadata[b"classes"]))
        samples = [Sample(*row) for row in zip(*columns, strict=True)]
        assert spec.source == "digits" or all(sample.path for sample in samples)
        return cls(classes, samples, spec)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pixels": {}}  # loader processes need no evaluation pixels
