"""Durable writes on a local disk: a file appears whole, and outlives a power cut."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def hash_file(local: Path) -> str:
    """sha256 of a local file, in hex."""
    with local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(root: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and bytes of every file, leaving out unfinished writes."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not _is_unfinished(name):
                with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                    yield path.relative_to(root).as_posix(), path.stat().st_size


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


@contextlib.contextmanager
def replacing(target: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that takes its name only when it is whole, so that nobody maps or reads a part."""
    make_dirs(target.parent)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
            if durable:
                sync(file)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def make_dirs(folder: Path) -> None:
    """Like mkdir -p, but the new names outlive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=False)
        return
    path.unlink(missing_ok=True)
