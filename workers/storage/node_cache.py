"""Files of a remote store on this node: downloaded once, whoever asks, and evicted by size.

Named by their content's hash, so experiments share them. They lie in `store/` of $SOUPFLEET_CACHE
(else soupfleet in the user's cache folder) and may fill $SOUPFLEET_CACHE_GB, or half of the disk's
free space.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from workers.errors import UserError
from workers.storage import local_disk

RECENT_S = 3600.0
"""Files used within this time stay: somebody may be about to map them."""


def home() -> Path:
    """What the environment says: where everything lies that is cached on this node."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = os.environ.get("SOUPFLEET_CACHE") or f"{cache}/soupfleet"
    return Path(path).expanduser().absolute()


def told_limit() -> int | None:
    """Bytes of $SOUPFLEET_CACHE_GB; None where nothing is said. Raises UserError for no number."""
    text = os.environ.get("SOUPFLEET_CACHE_GB")
    if not text:
        return None
    try:
        return int(float(text) * 1e9)
    except ValueError as error:
        raise UserError(
            f"SOUPFLEET_CACHE_GB is {text!r}, which is no number of gigabytes; write e.g. 200"
        ) from error


def folder() -> Path:
    """Of files from stores."""
    return home() / "store"


def keep(
    local: Path, is_good: Callable[[Path], bool], download: Callable[[BinaryIO], None]
) -> None:
    """Make sure that the file is there and good. Of all processes that want it one downloads."""
    if _is_there(local, is_good):
        return
    local_disk.make_dirs(local.parent)
    with local_disk.locked(local.with_name(f".{local.name}.lock")):
        if _is_there(local, is_good):
            return
        with local_disk.replacing(local, durable=False) as file:
            download(file)
    evict(local.parent, spare=local)


def _is_there(local: Path, is_good: Callable[[Path], bool]) -> bool:
    try:
        # What was used last is evicted last; its content is as old as before, and known.
        os.utime(local, ns=(time.time_ns(), local.stat().st_mtime_ns))
        return is_good(local)
    except FileNotFoundError:
        return False


def evict(folder: Path, spare: Path, now: float | None = None) -> None:
    """Delete what killed downloads left, then what was unused longest, until the rest fits. Who has
    mapped a file keeps its bytes."""
    old = (now or time.time()) - RECENT_S
    _delete_remains(folder, old)
    files = []
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another process evicts, too
            files.append((path.stat().st_atime, path.stat().st_size, path))
    used = sum(size for _, size, _ in files)
    told = told_limit()
    limit = (used + shutil.disk_usage(folder).free) / 2 if told is None else told
    for used_at, size, path in sorted(files):
        if used <= limit or used_at > old:
            return
        if path != spare:
            path.unlink(missing_ok=True)
            used -= size


def _delete_remains(folder: Path, old: float) -> None:
    for part in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_mtime < old:
                part.unlink()
