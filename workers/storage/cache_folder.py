"""A node's folder of cached files: built once whoever asks, evicted by size, never half there.

    keep: open -> or, holding the file's lock: open again -> make room -> build -> open

SOUPFLEET_CACHE names the folder (else soupfleet in the user's cache folder), SOUPFLEET_CACHE_GB
its size: half of what is free or already ours where nothing is said.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from workers.storage import local_disk, node_cache

T = TypeVar("T")
Touch = Callable[[], object]

SHARED_MEMORY = Path("/dev/shm")


class Unusable(OSError):
    """The folder takes no file of this size, or none at all."""


@dataclass(frozen=True)
class CacheFolder:
    path: Path
    limit: int | None = None
    """Bytes; None for half of what is free or already used by this folder."""
    damage: tuple[type[Exception], ...] = ()
    """Errors of opening a file that mean its content is damaged; it is built again."""
    sheds_unused: bool = False
    """Whether files that no process maps are evicted first thing, as befits memory."""

    def keep(
        self,
        name: str,
        need: Callable[[], int],
        build: Callable[[BinaryIO], None],
        opened: Callable[[Path], T],
        touch: Touch,
    ) -> T:
        """The file as `opened`; built before, of about `need` bytes, unless it is there and whole.

        While another process builds it, waits and calls `touch`. Raises Unusable for any error
        of the system; what `build` raises for reasons of its own must have no errno.
        """
        try:
            local_disk.make_dirs(self.path)
            found = self._open(name, opened)
            while found is None:
                with local_disk.locked(self._lock(name), touch):
                    found = self._open(name, opened)  # another may have built it meanwhile
                    if found is None:
                        found = self._built(name, need, build, opened)
            return found
        except OSError as error:
            if error.errno is None:
                raise
            raise Unusable(error.errno, f"{self.path}: {error.strerror}") from error

    def _lock(self, name: str) -> Path:
        return self.path / f".{name}.lock"

    def _open(self, name: str, opened: Callable[[Path], T]) -> T | None:
        """None where there is no such file, or a damaged one, which a build will replace."""
        path = self.path / name
        try:
            os.utime(path)  # what was used last is evicted last
            return opened(path)
        except FileNotFoundError:
            return None
        except self.damage as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return None

    def _built(
        self,
        name: str,
        need: Callable[[], int],
        build: Callable[[BinaryIO], None],
        opened: Callable[[Path], T],
    ) -> T | None:
        self._make_room(need(), name)
        with local_disk.replacing(self.path / name) as file:
            build(file)
        with contextlib.suppress(FileNotFoundError):  # somebody cleared the folder
            return opened(self.path / name)
        return None

    def _make_room(self, need: int, name: str) -> None:
        """Deletes what dead builders left, then the longest unused files, until `need` fits."""
        for left in self.path.glob(".*.tmp"):
            owner = left.name[1:].rsplit(".", 2)[0]
            if owner == name or _is_unlocked(self._lock(owner)):
                left.unlink(missing_ok=True)
        files = sorted(self._files(), key=lambda file: file[0])
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if not self.sheds_unused and self._fits(used, need):
                return
            if _evicted(path):
                used -= size
        if not self._fits(used, need):
            raise OSError(errno.ENOSPC, f"no room for {need / 1e9:.2f} GB")

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of the last use, bytes, path) of every whole file."""
        for path in self.path.glob("*.arrow"):
            with contextlib.suppress(FileNotFoundError):  # another process evicts, too
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _fits(self, used: int, need: int) -> bool:
        free = shutil.disk_usage(self.path).free
        limit = (used + free) // 2 if self.limit is None else self.limit
        return used + need <= limit and need <= free


def disk_folder(damage: tuple[type[Exception], ...] = ()) -> CacheFolder:
    """The cache on disk, as the environment says."""
    return CacheFolder(node_cache.home(), node_cache.told_limit(), damage)


def memory_folder(damage: tuple[type[Exception], ...] = ()) -> CacheFolder:
    """The cache in shared memory; in the temp folder where the system has none.

    Raises Unusable where somebody else took its name.
    """
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    path = parent / f"soupfleet-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unusable(error.errno, f"{path}: {error.strerror}") from error
    if path.lstat().st_uid != os.getuid():
        raise Unusable(errno.EACCES, f"{path}: belongs to another user")
    return CacheFolder(path, node_cache.told_limit(), damage, sheds_unused=True)


def _is_unlocked(path: Path) -> bool:
    try:
        with path.open("rb+") as file:
            return local_disk.try_lock(file)
    except FileNotFoundError:
        return True


def _evicted(path: Path) -> bool:
    """Deletes the file unless a process maps it: that would free nothing yet."""
    if not _is_unlocked(path):
        return False
    path.unlink(missing_ok=True)
    return True
