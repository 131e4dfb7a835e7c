"""Writing checkpoints in the background of training.

    training thread   step step [copy to host] step step step [copy to host] step ...
    writer thread                |-- write, hash, manifest --|     |-- write ...

Training waits only for the copy. If it is faster than the store, it waits for the write before
last.
"""

import copy
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from workers.storage.checkpoints import STATE_SCALARS, STATE_TENSORS, TrainState
from workers.storage.layout import WEIGHTS, checkpoint_dir
from workers.storage.manifest import Manifest, commit
from workers.storage.safetensors_writer import HashingSink, write_tensors
from workers.storage.store import Store
from workers.types import Checkpoint, FileInfo, Score


def write_checkpoint(
    store: Store,
    name: str,
    attempt: int | None,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    train_state: TrainState | None = None,
    base: str | None = None,
    score: Score | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    extra: Mapping[str, Any] | None = None,
    before_manifest: Callable[[], None] | None = None,
) -> Checkpoint:
    """Write a checkpoint, its manifest last, and return once it is complete.

    The manifest covers `extra_files`, by path inside the folder. `before_manifest` writes files
    elsewhere in the store that must exist once the checkpoint is complete.
    """
    folder = checkpoint_dir(name if attempt is None else f"{name}-{attempt}")
    files = {WEIGHTS: _write(store, f"{folder}/{WEIGHTS}", tensors)}
    if train_state is not None:
        path = f"{folder}/{STATE_TENSORS}"
        files[STATE_TENSORS] = _write(store, path, train_state.tensors)
    for path, data in _small_files(train_state, extra_files).items():
        store.write(f"{folder}/{path}", data)
        files[path] = FileInfo(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    if before_manifest is not None:
        before_manifest()
    manifest = Manifest(
        name=name,
        attempt=attempt,
        step=step,
        base=base,
        score=score,
        files=files,
        extra=dict(extra or {}),
    )
    return commit(store, manifest)


def _small_files(
    train_state: TrainState | None, extra_files: Mapping[str, bytes] | None
) -> dict[str, bytes]:
    files = dict(extra_files or {})
    if train_state is not None:
        files[STATE_SCALARS] = json.dumps(train_state.scalars, sort_keys=True).encode()
    return files


def _write(store: Store, path: str, tensors: Mapping[str, Tensor]) -> FileInfo:
    with store.writing(path) as sink:
        hashing = HashingSink(sink)
        write_tensors(hashing, tensors)
    return FileInfo(size=hashing.size, sha256=hashing.sha256.hexdigest())


class CheckpointWriter:
    """Writes checkpoints in its own thread, in the order of submission.

    It keeps at most two copies of the training state, one being written and one waiting. An error
    of the thread is raised once, by the next call. The end of the context manager waits for all
    writes; after an exception, it drops those that have not started.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stall_s = 0.0
        """Total seconds that training waited in `submit`."""
        self.longest_s = 0.0
        """Seconds that the slowest write took."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._pending: deque[Future[Checkpoint]] = deque()
        self._finished: list[Checkpoint] = []
        self._copies: list[_HostCopy] = []
        """Host memory that no write uses."""

    def submit(
        self,
        name: str,
        attempt: int | None,
        step: int,
        tensors: Mapping[str, Tensor],
        *,
        train_state: TrainState | None = None,
        **options: Any,
    ) -> None:
        """Write a checkpoint like `write_checkpoint`, but return once the tensors are copied."""
        began = time.perf_counter()
        self._collect(leave=1)
        host = self._copies.pop() if self._copies else _HostCopy()
        weights, state = host.take(tensors, train_state)

        def write() -> Checkpoint:
            began = time.perf_counter()
            try:
                return write_checkpoint(
                    self.store, name, attempt, step, weights, train_state=state, **options
                )
            finally:
                self.longest_s = max(self.longest_s, time.perf_counter() - began)
                self._copies.append(host)

        self._pending.append(self._thread.submit(write))
        self.stall_s += time.perf_counter() - began

    def done(self) -> list[Checkpoint]:
        """Checkpoints that became complete since the last call, oldest first."""
        self._collect(leave=len(self._pending))
        finished, self._finished = self._finished, []
        return finished

    def flush(self) -> list[Checkpoint]:
        """Wait for all writes, then return what `done` returns."""
        self._collect(leave=0)
        return self.done()

    def close(self) -> None:
        """Wait for all writes, then end the thread and free the host memory."""
        try:
            self._collect(leave=0)
        finally:
            self._end(drop=False)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is None:
            return self.close()
        self._end(drop=True)

    def _collect(self, leave: int) -> None:
        """Collect results, and wait while more than `leave` writes are unfinished."""
        while self._pending and (len(self._pending) > leave or self._pending[0].done()):
            self._finished.append(self._pending.popleft().result())

    def _end(self, drop: bool) -> None:
        self._thread.shutdown(wait=True, cancel_futures=drop)
        self._copies.clear()


@dataclass
class _HostCopy:
    """Host memory for one copy of a training state. Reuse avoids page faults."""

    buffers: dict[str, Tensor] = field(default_factory=dict)

    def take(
        self, tensors: Mapping[str, Tensor], train_state: TrainState | None
    ) -> tuple[dict[str, Tensor], TrainState | None]:
        """Copies of all tensors, complete when this returns."""
        state = {} if train_state is None else train_state.tensors
        sources = {f"weights/{name}": tensor for name, tensor in tensors.items()}
        sources |= {f"state/{name}": tensor for name, tensor in state.items()}
        self.buffers |= {key: self._copy(key, tensor) for key, tensor in sources.items()}
        for device in {tensor.device for tensor in sources.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        weights = {name: self.buffers[f"weights/{name}"] for name in tensors}
        if train_state is None:
            return weights, None
        copied = {name: self.buffers[f"state/{name}"] for name in state}
        return weights, TrainState(copied, copy.deepcopy(train_state.scalars))

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        buffer = self.buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pin = tensor.is_cuda  # only from pinned memory does the device copy at full speed
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin)
        return buffer.copy_(tensor.detach(), non_blocking=True)
