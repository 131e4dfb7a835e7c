"""The manifest of a checkpoint, which is complete once it is written. Torch-free.

    files of the checkpoint -> manifest.json -> `checkpoint` event in the ledger
                               complete         usable

There is no rename and no marker file, so this holds on object stores too.
"""

from typing import Any

from pydantic import ValidationError

from workers.storage.layout import MANIFEST, WEIGHTS, checkpoint_dir
from workers.storage.store import CorruptFile, Store
from workers.types import Checkpoint, FileInfo, FrozenModel, Score


class Manifest(FrozenModel):
    """The files of a checkpoint. `name` and `attempt` make its id, as in Checkpoint."""

    name: str
    attempt: int | None = None
    step: int = 0
    base: str | None = None
    """Name of the base that the run started from."""
    score: Score | None = None
    """Score on the selection split. None: not the end of an epoch."""
    files: dict[str, FileInfo]
    """Files by path inside the checkpoint's folder."""
    extra: dict[str, Any] = {}

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            name=self.name,
            attempt=self.attempt,
            step=self.step,
            sha256=self.files[WEIGHTS].sha256,
            num_bytes=sum(file.size for file in self.files.values()),
        )


def commit(store: Store, manifest: Manifest) -> Checkpoint:
    """Make a checkpoint complete. All its files must already be in the store."""
    checkpoint = manifest.checkpoint
    text = manifest.model_dump_json(indent=1) + "\n"
    store.write(f"{checkpoint_dir(checkpoint.id)}/{MANIFEST}", text.encode())
    return checkpoint


def read_manifest(store: Store, checkpoint_id: str) -> Manifest | None:
    """The manifest of a checkpoint. None: it is missing, cut short, or of another checkpoint."""
    try:
        text = store.read(f"{checkpoint_dir(checkpoint_id)}/{MANIFEST}")
        manifest = Manifest.model_validate_json(text)
    except (FileNotFoundError, ValidationError):
        return None
    if WEIGHTS not in manifest.files or manifest.checkpoint.id != checkpoint_id:
        return None
    return manifest


def complete(store: Store, run: str, attempt: int) -> list[tuple[Checkpoint, Score | None]]:
    """Complete checkpoints that one attempt of a run wrote, by step.

    They have a manifest, and every file has the size in it. Checkpoints of other attempts are
    ignored, because their processes may still be writing.
    """
    sizes = store.sizes(f"runs/{run}/checkpoints")
    ids = [
        f"{run}/{path.split('/')[-2]}"
        for path in sizes
        if path.endswith(f"-{attempt}/{MANIFEST}") and path.count("/") == 4
    ]
    manifests = [manifest for id_ in ids if (manifest := read_manifest(store, id_))]
    whole = [m for m in manifests if not _wrong_sizes(m, sizes)]
    return [(m.checkpoint, m.score) for m in sorted(whole, key=lambda m: m.step)]


def discard(store: Store, checkpoint_id: str) -> None:
    """Delete a checkpoint, its manifest first, so that a part of it never looks complete."""
    folder = checkpoint_dir(checkpoint_id)
    store.delete(f"{folder}/{MANIFEST}")
    store.delete(folder)


def verify_files(store: Store, checkpoint_id: str) -> None:
    """Hash every file of a checkpoint against its manifest.

    Raises:
        CorruptFile: a file is missing or has another size or hash; the message names it.
    """
    folder = checkpoint_dir(checkpoint_id)
    manifest = read_manifest(store, checkpoint_id)
    if manifest is None:
        raise CorruptFile(f"{folder}/{MANIFEST} in {store} is missing or cut short")
    sizes = store.sizes(folder)
    if wrong := _wrong_sizes(manifest, sizes):
        size, expected = sizes.get(wrong), manifest.files[wrong.removeprefix(f"{folder}/")].size
        fault = "is missing" if size is None else f"has {size} bytes instead of {expected}"
        raise CorruptFile(f"{wrong} in {store} {fault}")
    for name, file in manifest.files.items():
        if store.hash(f"{folder}/{name}") != file.sha256:
            raise CorruptFile(
                f"{folder}/{name} in {store} is corrupt: its sha256 is not that of its manifest"
            )


def _wrong_sizes(manifest: Manifest, sizes: dict[str, int]) -> str | None:
    """Path of the first file that is missing or has another size than in the manifest."""
    folder = checkpoint_dir(manifest.checkpoint.id)
    for name, file in manifest.files.items():
        if sizes.get(f"{folder}/{name}") != file.size:
            return f"{folder}/{name}"
    return None
