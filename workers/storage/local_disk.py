"""Durable writes on a local disk: a file appears whole, and outlives a power cut."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

POLL_S = 0.05
"""Between looks at a lock that somebody else has."""


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


@contextlib.contextmanager
def locked(path: Path, touch: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Alone among processes and threads; the lock of a process that dies is free at once. Calls
    `touch` while it waits."""
    while True:
        with path.open("ab") as file:
            while not try_lock(file):
                touch()
                time.sleep(POLL_S)
            if not _is_still(path, file):
                continue  # its last owner deleted it as we took it
            try:
                yield
                return
            finally:
                path.unlink(missing_ok=True)


def try_lock(file: BinaryIO) -> bool:
    """Whether it is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
