"""The manifest: written last, it makes a checkpoint complete. Torch-free.

    files of the checkpoint -> manifest.json -> `checkpoint` event in the ledger
                               complete         counts

No rename and no marker file, so the order of writes holds on object stores too.
"""

from typing import Any

from pydantic import ValidationError

from workers.storage.layout import MANIFEST, WEIGHTS, checkpoint_dir
from workers.storage.store import CorruptFile, Store
from workers.types import Checkpoint, FrozenModel, Score


class FileInfo(FrozenModel):
    size: int
    """Bytes."""
    sha256: str


class Manifest(FrozenModel):
    """What a checkpoint consists of. `name` and `attempt` make its id, as in Checkpoint."""

    name: str
    attempt: int | None = None
    step: int = 0
    base: str | None = None
    """Name of the base that the run started from."""
    score: Score | None = None
    """On the selection split; None in the middle of an epoch."""
    files: dict[str, FileInfo]
    """By path inside the checkpoint's folder."""
    extra: dict[str, Any] = {}

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            name=self.name,
            attempt=self.attempt,
            step=self.step,
            sha256=self.files[WEIGHTS].sha256,
            num_bytes=sum(facts.size for facts in self.files.values()),
        )


def commit(store: Store, manifest: Manifest) -> Checkpoint:
    """Make a checkpoint complete; every file it names must already be in the store."""
    checkpoint = manifest.checkpoint
    text = manifest.model_dump_json(indent=1) + "\n"
    store.write(f"{checkpoint_dir(checkpoint.id)}/{MANIFEST}", text.encode())
    return checkpoint


def read_manifest(store: Store, checkpoint_id: str) -> Manifest | None:
    """The manifest of a checkpoint; None when it is absent, cut short, or of another checkpoint."""
    try:
        text = store.read(f"{checkpoint_dir(checkpoint_id)}/{MANIFEST}")
        manifest = Manifest.model_validate_json(text)
    except (FileNotFoundError, ValidationError):
        return None
    if WEIGHTS not in manifest.files or manifest.checkpoint.id != checkpoint_id:
        return None
    return manifest


def complete(store: Store, run: str, attempt: int) -> list[tuple[Checkpoint, Score | None]]:
    """Complete checkpoints that one attempt of a run wrote, by step, for adoption.

    Complete: the manifest is there and every file it names has the size it says. What other
    attempts wrote, a zombie's checkpoint for one, is not looked at.
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
    """Delete a checkpoint; the manifest goes first, so that no half of it looks complete."""
    folder = checkpoint_dir(checkpoint_id)
    store.delete(f"{folder}/{MANIFEST}")
    store.delete(folder)


def verify_files(store: Store, checkpoint_id: str) -> None:
    """Hash every file of a checkpoint against its manifest.

    Raises:
        CorruptFile: naming the first file that is missing or not what was written.
    """
    folder = checkpoint_dir(checkpoint_id)
    manifest = read_manifest(store, checkpoint_id)
    if manifest is None:
        raise CorruptFile(f"{folder}/{MANIFEST} in {store} is missing or cut short")
    sizes = store.sizes(folder)
    if wrong := _wrong_sizes(manifest, sizes):
        seen, said = sizes.get(wrong), manifest.files[wrong.removeprefix(f"{folder}/")].size
        found = "is missing" if seen is None else f"has {seen} bytes instead of {said}"
        raise CorruptFile(f"{wrong} in {store} {found}")
    for name, facts in manifest.files.items():
        if store.hash(f"{folder}/{name}") != facts.sha256:
            raise CorruptFile(
                f"{folder}/{name} in {store} is corrupt: its sha256 is not what its manifest says"
            )


def _wrong_sizes(manifest: Manifest, sizes: dict[str, int]) -> str | None:
    """The first file that is missing or has another size than the manifest says."""
    folder = checkpoint_dir(manifest.checkpoint.id)
    for name, facts in manifest.files.items():
        if sizes.get(f"{folder}/{name}") != facts.size:
            return f"{folder}/{name}"
    return None
