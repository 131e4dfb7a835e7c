"""The files of a store against those in its ledger.

    sizes    of every file, from one listing
    hashes   of the smallest files, up to a budget; `verify` hashes all of them

A difference becomes a `damaged` event. The state forgets the file, and the schedule makes it again.
"""

import io
import json
from collections.abc import Iterator, Set
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.state.state import State
from workers.storage import manifest
from workers.storage.layout import MANIFEST, SPLITS, checkpoint_dir, predictions_dir
from workers.storage.store import CorruptFile, Store
from workers.types import AnyEvent, AnyOrder, Checkpoint, Damaged, FileInfo

HASHED_BYTES = 256 << 20
"""Bytes of all files that are hashed at the start of a driver."""
HASHED_FILES = 2000


def damaged_files(store: Store, state: State) -> list[AnyEvent]:
    """Files that are missing or differ, one event each for a file or checkpoint."""
    if state.preflight is None:
        return []
    sizes = store.sizes()
    return [*_damaged_checkpoints(store, state, sizes), *_damaged_others(store, state, sizes)]


def committed_checkpoints(state: State) -> tuple[Checkpoint, ...]:
    """Bases, checkpoints of runs and soups that are in the ledger and were not retired."""
    runs = (event.checkpoint for run in state.runs.values() for event in run.checkpoints)
    return (*state.bases.values(), *runs, *state.soups.values())


def checkpoint_problem(store: Store, checkpoint: Checkpoint) -> str | None:
    """The first difference of files, manifest and ledger, by hash. None: they agree."""
    try:
        manifest.verify_files(store, checkpoint.id)
    except (CorruptFile, FileNotFoundError) as error:
        return str(error)
    return _manifest_problem(store, checkpoint)


def file_problems(
    store: Store, state: State, sizes: dict[str, int], hashed: Set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """(path, problem) of every file outside of checkpoints that is not what was announced.

    Only the files in `hashed` are read. None: all are.
    """
    for path, file in announced_files(state):
        problem = _size_problem(store, path, file.size, sizes)
        is_hashed = hashed is None or path in hashed
        if problem is None and is_hashed and store.hash(path) != file.sha256:
            problem = f"{path} in {store} is corrupt: its sha256 is not that in the ledger"
        if problem is not None:
            yield path, problem
    yield from _splits_problem(store, state, sizes)


def announced_files(state: State) -> Iterator[tuple[str, FileInfo]]:
    for files in state.files.values():
        yield from files.items()


def _splits_problem(store: Store, state: State, sizes: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Old ledgers have no hash of splits.parquet, but the fingerprints of the splits."""
    assert state.preflight is not None
    if SPLITS in state.files.get("", {}):
        return
    if SPLITS not in sizes:
        yield SPLITS, f"{SPLITS} in {store} is missing"
        return
    expected = {name: split.fingerprint for name, split in state.preflight.splits.items()}
    try:
        metadata = pq.read_schema(io.BytesIO(store.read(SPLITS))).metadata
        seen = json.loads(metadata[b"fingerprints"])
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        seen = None
    if seen is None or any(seen.get(name, value) != value for name, value in expected.items()):
        yield SPLITS, f"{SPLITS} in {store} is not of the splits in the ledger"


def _damaged_checkpoints(store: Store, state: State, sizes: dict[str, int]) -> Iterator[AnyEvent]:
    checkpoints = committed_checkpoints(state)
    small = _within_budget({c.id: c.num_bytes for c in checkpoints})
    stored: dict[str, int] = {}
    for path, size in sizes.items():
        folder, _, name = path.rpartition("/")
        if name != MANIFEST:
            stored[folder] = stored.get(folder, 0) + size
    for checkpoint in checkpoints:
        folder = checkpoint_dir(checkpoint.id)
        problem = None
        if f"{folder}/{MANIFEST}" not in sizes:
            problem = f"{folder}/{MANIFEST} in {store} is missing"
        elif checkpoint.id in small or stored.get(folder, 0) != checkpoint.num_bytes:
            problem = checkpoint_problem(store, checkpoint)
        if problem is not None:
            is_base = checkpoint.name in state.bases
            yield Damaged(
                path=f"{folder}/{MANIFEST}",
                reason=problem,
                checkpoint=None if is_base else checkpoint.id,
            )


def _damaged_others(store: Store, state: State, sizes: dict[str, int]) -> Iterator[AnyEvent]:
    small = _within_budget({path: file.size for path, file in announced_files(state)})
    for path, problem in file_problems(store, state, sizes, hashed=small):
        yield Damaged(path=path, reason=problem)


def _size_problem(store: Store, path: str, expected: int, sizes: dict[str, int]) -> str | None:
    size = sizes.get(path)
    if size is None:
        return f"{path} in {store} is missing"
    return None if size == expected else f"{path} in {store} has {size} bytes, not {expected}"


def _manifest_problem(store: Store, checkpoint: Checkpoint) -> str | None:
    stored = manifest.read_manifest(store, checkpoint.id)
    if stored is None or stored.checkpoint != checkpoint:
        return f"the manifest of {checkpoint.id} in {store} differs from the ledger"
    return None


def _within_budget(sizes: dict[str, int]) -> set[str]:
    """The smallest, as many as are hashed at once."""
    total, names = 0, set()
    for name, size in sorted(sizes.items(), key=lambda item: item[1])[:HASHED_FILES]:
        total += size
        if total > HASHED_BYTES:
            break
        names.add(name)
    return names


def with_expected_files(state: State, order: AnyOrder) -> AnyOrder:
    """The order with the sha256 of the files that it may read."""
    files = {path: file.sha256 for path, file in _files_read(state, order)}
    return order.model_copy(update={"files": files})


def _files_read(state: State, order: AnyOrder) -> Iterator[tuple[str, FileInfo]]:
    """An order that compares models may read all."""
    if order.kind in ("compare", "analyse", "diversity"):
        yield from chain.from_iterable(files.items() for files in state.files.values())
        return
    if order.kind != "preflight":
        yield from state.files.get("", {}).items()
    ids: tuple[str, ...] = ()
    if order.kind == "taste":
        ids = order.hard_images_first
    elif order.kind == "score":
        ids = (order.checkpoint.id,)
    for id_ in ids:
        yield from state.files.get(predictions_dir(id_), {}).items()
