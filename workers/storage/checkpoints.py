"""Reading checkpoints: tensors mapped from verified files, and the training state."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from torch import Tensor

from workers.storage.layout import MANIFEST, WEIGHTS, checkpoint_dir
from workers.storage.manifest import read_manifest
from workers.storage.store import CorruptFile, Store
from workers.types import Checkpoint

STATE_TENSORS = "train_state.safetensors"
STATE_SCALARS = "train_state.json"
STATE_FILES = frozenset({STATE_TENSORS, STATE_SCALARS})
"""A checkpoint has both or neither."""


@dataclass
class TrainState:
    """All that training needs beside the weights to continue as if it had never stopped."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    """Plain JSON."""


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint, mapped from its file and read on use.

    A tensor is a view of the page cache, must not be written to, and stays valid after `close`.
    """

    def __init__(self, path: str, on_tensor: Callable[[], object] = lambda: None) -> None:
        """`on_tensor` is called whenever a tensor is read."""
        self._on_tensor = on_tensor
        self._file: Any = safe_open(path, framework="pt")
        self._names: dict[str, None] = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        self._on_tensor()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.values())

    def close(self) -> None:
        self._names = {}
        self._file = None

    def __enter__(self) -> "CheckpointTensors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_weights(store: Store, checkpoint: Checkpoint) -> CheckpointTensors:
    """The weights of a checkpoint. Its file is hashed before the first use in this process.

    Raises:
        CorruptFile: the file has another hash than the checkpoint.
        FileNotFoundError: there is no such file.
    """
    path = f"{checkpoint_dir(checkpoint.id)}/{WEIGHTS}"
    return CheckpointTensors(str(store.fetch(path, checkpoint.sha256)), store.on_bytes)


def load_train_state(store: Store, checkpoint: Checkpoint) -> TrainState | None:
    """The training state of a checkpoint, copied into memory. None: it has no state.

    Raises:
        CorruptFile: the manifest is missing or of other weights, or a file is corrupt.
    """
    files = _files_of(store, checkpoint)
    if STATE_SCALARS not in files:
        return None
    scalars = store.fetch(f"{checkpoint_dir(checkpoint.id)}/{STATE_SCALARS}", files[STATE_SCALARS])
    with open_state(store, checkpoint) as weights:
        tensors = {name: tensor.clone() for name, tensor in weights.items()}
    return TrainState(tensors, json.loads(scalars.read_text()))


def open_state(store: Store, checkpoint: Checkpoint) -> CheckpointTensors:
    """The tensors of a checkpoint's training state, mapped; errors as in `load_train_state`."""
    sha256 = _files_of(store, checkpoint)[STATE_TENSORS]
    return CheckpointTensors(
        str(store.fetch(f"{checkpoint_dir(checkpoint.id)}/{STATE_TENSORS}", sha256)), store.on_bytes
    )


def _files_of(store: Store, checkpoint: Checkpoint) -> dict[str, str]:
    """sha256 of every file in the manifest of a checkpoint."""
    manifest = read_manifest(store, checkpoint.id)
    is_complete = manifest is not None and manifest.checkpoint == checkpoint
    if manifest is None or not is_complete or len(manifest.files.keys() & STATE_FILES) == 1:
        raise CorruptFile(
            f"{checkpoint_dir(checkpoint.id)}/{MANIFEST} in {store} is missing, cut short, or of "
            "other files"
        )
    return {name: file.sha256 for name, file in manifest.files.items()}
