"""A cache folder of this node: a file is built once for all processes, and evicted by size.

    get: open it -> or, holding the file's lock: open it again -> make room -> build -> open

    store_cache    downloads from a remote store, named by the hash of their content
    disk_cache     decoded images
    memory_cache   decoded images in shared memory

SOUPFLEET_CACHE names the folder (default: `soupfleet` in the user's cache folder),
SOUPFLEET_CACHE_GB its size (default: half of what is free or already used by the folder).
"""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from workers.errors import UserError
from workers.storage import local_disk

Contents = TypeVar("Contents")
Touch = Callable[[], object]

SHARED_MEMORY = Path("/dev/shm")
RECENT_S = 3600.0
"""Downloads used within this time stay: a process may be about to map them."""


@dataclass(frozen=True)
class NodeCache:
    """A folder of cached files. The time of the last use is a file's access time."""

    path: Path
    pattern: str = "*.arrow"
    """The files that may be evicted."""
    limit: int | None = None
    """Bytes. None: half of what is free or already used by this folder."""
    damage: tuple[type[Exception], ...] = ()
    """Errors of opening a file that mean damaged content. Such a file is built again."""
    keeps_unused: bool = True
    """Keep files that no process maps while there is room. False for memory, which is scarce."""
    recent_s: float = 0.0
    """Files used within so many seconds are not evicted."""
    must_fit: bool = True
    """Refuse to build a file for which there is no room. False: build it all the same."""
    durable: bool = True
    """Whether a file outlives a power cut."""

    def get(
        self,
        name: str,
        num_bytes: Callable[[], int],
        build: Callable[[BinaryIO], None],
        opened: Callable[[Path], Contents],
        touch: Touch = lambda: None,
    ) -> Contents:
        """The file as `opened` returns it, built if it is absent or damaged.

        `num_bytes` estimates the size before a build. `touch` is called while another process
        builds the file.

        Raises:
            OSError: with an errno, for an error of the system, such as no room for the file.
        """
        local_disk.make_dirs(self.path)
        result = self._open(name, opened)
        while result is None:
            with local_disk.locked(self._lock(name), touch):
                result = self._open(name, opened)  # another process may have built it meanwhile
                if result is None:
                    result = self._build(name, num_bytes, build, opened)
        return result

    def _open(self, name: str, opened: Callable[[Path], Contents]) -> Contents | None:
        """None: the file is absent or damaged."""
        path = self.path / name
        try:
            # The modification time stays: it is the state of the content that was verified.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return opened(path)
        except FileNotFoundError:
            return None
        except self.damage as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return None

    def _build(
        self,
        name: str,
        num_bytes: Callable[[], int],
        build: Callable[[BinaryIO], None],
        opened: Callable[[Path], Contents],
    ) -> Contents | None:
        self._make_room(num_bytes(), name)
        with local_disk.replacing(self.path / name, self.durable) as file:
            build(file)
        try:
            return opened(self.path / name)
        except FileNotFoundError:
            return None  # another process emptied the folder

    def _lock(self, name: str) -> Path:
        return self.path / f".{name}.lock"

    def _make_room(self, num_bytes: int, name: str) -> None:
        """Delete unfinished files of dead builders, then the least recently used files, until
        `num_bytes` fit."""
        for unfinished in self.path.glob(".*.tmp"):
            owner = unfinished.name[1:].rsplit(".", 2)[0]
            if owner == name or _is_unlocked(self._lock(owner)):
                unfinished.unlink(missing_ok=True)
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        for used_at, size, path in files:
            is_recent = used_at > time.time() - self.recent_s
            if is_recent or (self.keeps_unused and self._fits(used, num_bytes)):
                break
            if _evicted(path):
                used -= size
        if self.must_fit and not self._fits(used, num_bytes):
            raise OSError(errno.ENOSPC, f"no room for {num_bytes / 1e9:.2f} GB", str(self.path))

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of the last use, bytes, path) of every complete file."""
        for path in self.path.glob(self.pattern):
            with contextlib.suppress(FileNotFoundError):  # another process evicts, too
                status = path.stat()
                yield status.st_atime, status.st_size, path

    def _fits(self, used: int, num_bytes: int) -> bool:
        free = shutil.disk_usage(self.path).free
        limit = (used + free) // 2 if self.limit is None else self.limit
        return used + num_bytes <= limit and num_bytes <= free


def store_cache(path: Path | None, damage: tuple[type[Exception], ...] = ()) -> NodeCache:
    """The cache of files from remote stores. None: `store/` in the cache folder of the node.

    Readers map these files without a lock, so recent ones stay even where the limit is exceeded.
    """
    return NodeCache(
        path=_home() / "store" if path is None else path,
        pattern="[!.]*",
        limit=_size_limit(),
        damage=damage,
        recent_s=RECENT_S,
        must_fit=False,
        durable=False,
    )


def disk_cache(damage: tuple[type[Exception], ...] = ()) -> NodeCache:
    """The cache of decoded images on disk."""
    return NodeCache(_home(), limit=_size_limit(), damage=damage)


def memory_cache(damage: tuple[type[Exception], ...] = ()) -> NodeCache:
    """The cache of decoded images in shared memory, or in the temp folder of a system without it.

    Raises:
        OSError: another user has its name.
    """
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    path = parent / f"soupfleet-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.getuid():
        raise OSError(errno.EACCES, "belongs to another user", str(path))
    return NodeCache(path, limit=_size_limit(), damage=damage, keeps_unused=False)


def _home() -> Path:
    """The folder of everything that is cached on this node."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = os.environ.get("SOUPFLEET_CACHE") or f"{cache}/soupfleet"
    return local_disk.expanded(path).absolute()


def _size_limit() -> int | None:
    """Bytes of SOUPFLEET_CACHE_GB. None: it is not set."""
    text = os.environ.get("SOUPFLEET_CACHE_GB")
    if not text:
        return None
    try:
        return int(float(text) * 1e9)
    except ValueError as error:
        raise UserError(
            f"SOUPFLEET_CACHE_GB is {text!r}, which is no number of gigabytes; write e.g. 200"
        ) from error


def _is_unlocked(path: Path) -> bool:
    try:
        with path.open("rb+") as file:
            return local_disk.try_lock(file)
    except FileNotFoundError:
        return True


def _evicted(path: Path) -> bool:
    """Delete the file unless a process maps it: deleting that would free nothing yet."""
    if not _is_unlocked(path):
        return False
    path.unlink(missing_ok=True)
    return True
