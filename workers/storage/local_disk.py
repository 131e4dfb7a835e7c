"""Files on a local disk: whole and durable writes, hashes, locks."""

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

from workers.errors import UserError

_BLOCK = 1 << 20
"""Bytes hashed at a time; a block stays in the processor's cache."""

LOCK_POLL_S = 0.05
"""Seconds between two attempts to take a lock."""


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` filled in. Raises UserError if there is no such user."""
    local = os.path.expanduser(path)
    if local.startswith("~"):
        user = local.partition("/")[0]
        raise UserError(f"{local}: {user} is the home of no user; write the whole path")
    return Path(local)


def hash_file(local: Path, touch: Callable[[], object] = lambda: None) -> str:
    """sha256 of a local file, in hex. `touch` is called after every block."""
    total = hashlib.sha256()
    with local.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
            touch()
    return total.hexdigest()


def walk(root: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """(relative path, bytes) of every file except unfinished writes."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not is_unfinished(name):
                with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                    yield path.relative_to(root).as_posix(), path.stat().st_size


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is a write that has not ended, or never will."""
    return name.startswith(".") and name.endswith(".tmp")


@contextlib.contextmanager
def replacing(
    target: Path, durable: bool = True, guard: Callable[[], object] = lambda: None
) -> Iterator[BinaryIO]:
    """A file for writing that gets the name of `target` once it is complete.

    It is locked until then, so that `remove_unfinished` can tell it from one of a dead process.
    `guard` is called last of all; if it raises, the target stays as it was.
    """
    make_dirs(target.parent)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                try_lock(file)
            yield file
            if durable:
                sync(file)
            guard()
            unfinished.replace(target)
    finally:
        with contextlib.suppress(OSError):  # the error of the write itself matters more
            unfinished.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def remove_unfinished(folder: Path, before: float) -> None:
    """Delete unfinished writes of dead processes, last changed before this time, Unix seconds."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if is_unfinished(name)):
            with contextlib.suppress(OSError):  # deleted since, or it cannot be locked
                if path.stat().st_mtime < before:
                    _remove_unless_locked(path)


def _remove_unless_locked(path: Path) -> None:
    with path.open("rb") as file:
        if try_lock(file):
            path.unlink()


def make_dirs(folder: Path) -> None:
    """Create a folder and its parents, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync(file: BinaryIO) -> None:
    """Wait until the content of an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(path: Path) -> None:
    """Delete a file or a folder with all its files. A missing one is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=False)
        return
    path.unlink(missing_ok=True)


# Not the library filelock: it leaves its lock files behind, one for each file ever cached, and can
# only lock a file by opening it for creation, which a look at a data file must not do.
@contextlib.contextmanager
def locked(path: Path, touch: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Exclusive among processes and threads. A process that dies frees its lock.

    `touch` is called while waiting.
    """
    while True:
        with path.open("ab") as file:
            while not try_lock(file):
                touch()
                time.sleep(LOCK_POLL_S)
            if not _is_same_file(path, file):
                continue  # the last owner deleted it as this one took it
            try:
                yield
                return
            finally:
                path.unlink(missing_ok=True)


def try_lock(file: BinaryIO) -> bool:
    """Take the exclusive lock of an open file without waiting; False: another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same_file(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
