"""The store: one folder per experiment, on a local disk or behind any pyarrow.fs URI.

local folder    files are read and mapped in place; writes are durable, and files appear complete
other URIs      objects appear complete; `fetch` keeps a copy for all processes of the node
"""

import contextlib
import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from workers.errors import UserError, first_line
from workers.storage import local_disk
from workers.storage.corrupt_file import CorruptFile as CorruptFile
from workers.storage.corrupt_file import MissingFile as MissingFile
from workers.storage.corrupt_file import corrupt, known_file
from workers.storage.filesystem import local_root, open_filesystem
from workers.storage.layout import PROBE
from workers.storage.node_cache import NodeCache, store_cache
from workers.text import without_credentials

Bytes = bytes | bytearray | memoryview

_BLOCK = 8 << 20
"""Bytes per copy, large enough for few parts in an object store."""
_FLAT = {"s3", "gcs", "abfs"}
"""File systems without folders, which need not be created before an object."""


OnBytes = Callable[[], object]
"""Called while bytes flow, from any thread."""
_COPY_LIMIT = 5 << 30
"""Largest object, in bytes, that S3 copies in one request."""
_PROBE_S = 60.0
"""Longest time that a probe of a live process exists."""
_LOCKING_S = 1.0
"""Longest time from the creation of an unfinished file to its lock."""

Guard = Callable[[], object]
"""Raises if a file must not be published any more."""


def _no_guard() -> None:
    """Always allow it."""


def _is_leftover(name: str) -> bool:
    return name.startswith(PROBE) or local_disk.is_unfinished(name)


class Sink(Protocol):
    """A place that large files are written to."""

    def write(self, data: Bytes, /) -> Any: ...


class _ReportingSink:
    """Passes bytes on block by block, and calls `on_bytes` after each."""

    def __init__(self, sink: Sink, on_bytes: OnBytes) -> None:
        self._sink, self._on_bytes = sink, on_bytes

    def write(self, data: Bytes, /) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _BLOCK):
            self._sink.write(view[start : start + _BLOCK])
            self._on_bytes()


class Store:
    """The files of one experiment by relative path, separated by `/`.

    A missing file raises FileNotFoundError, a store that does not answer OSError. Safe to use from
    several threads.
    """

    def __init__(
        self, uri: str, cache_dir: str | None = None, on_bytes: OnBytes = lambda: None
    ) -> None:
        """`on_bytes` is called after every block that is read, written or hashed."""
        self.local_root = local_root(uri)
        self.is_local = self.local_root is not None
        # Workers may run in another folder than the driver, so a local path is made absolute.
        self.uri = uri if self.local_root is None else str(self.local_root)
        self._cache_dir = cache_dir
        self.on_bytes = on_bytes
        self._hashed: dict[str, tuple[int, int, str | None]] = {}
        """Local file -> (modification time, bytes, sha256) when it was hashed."""
        self._expected: dict[str, str] = {}

    def __str__(self) -> str:
        """The URI without credentials and query."""
        return self.uri if self.is_local else without_credentials(self.uri).partition("?")[0]

    def child(self, name: str) -> "Store":
        """The store of a folder inside this one. A query string stays at the end of the URI."""
        root, mark, query = self.uri.partition("?") if not self.is_local else (self.uri, "", "")
        return Store(f"{root.rstrip('/')}/{name}{mark}{query}", self._cache_dir, self.on_bytes)

    def expect(self, files: Mapping[str, str]) -> None:
        """Check these files, path -> sha256, at every read until they are written again."""
        self._expected = dict(files)

    def is_expected(self, path: str) -> bool:
        """Whether the file must be in the store, because its hash is known."""
        return path in self._expected

    # Reading

    def read(self, path: str) -> bytes:
        """Raises CorruptFile for an expected file with another hash, or that is missing."""
        with known_file(path, self, is_known=self.is_expected(path)):
            content = self._read(path)
        sha256 = self._expected.get(path)
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise corrupt(path, self, sha256)
        return content

    def _read(self, path: str) -> bytes:
        if self.local_root is not None:
            content = self._local(path).read_bytes()
            self.on_bytes()
            return content
        with self._filesystem.open_input_file(self._remote(path)) as file:
            return b"".join(self._blocks(file))

    def _blocks(self, file: Any) -> Iterator[bytes]:
        while block := file.read(_BLOCK):
            self.on_bytes()
            yield block

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder of this name."""
        if self.local_root is not None:
            return self._local(path).exists()
        return bool(self._info(path).type.name != "NotFound")

    def is_file(self, path: str) -> bool:
        """Whether there is a file of this name; a folder is none."""
        if self.local_root is not None:
            return self._local(path).is_file()
        return bool(self._info(path).type.name == "File")

    def entries(self) -> dict[str, bool]:
        """Names at the top of the store, and whether each is a file. Unfinished writes and probes
        are left out."""
        if self.local_root is not None:
            paths = self.local_root.iterdir() if self.local_root.is_dir() else ()
            names = {path.name: not path.is_dir() for path in paths}
        else:
            names = {
                info.base_name: info.type.name == "File"
                for info in self._filesystem.get_file_info(self._top())
            }
        return {name: is_file for name, is_file in names.items() if not _is_leftover(name)}

    def list(self, prefix: str = "") -> list[str]:
        """Sorted paths of all files under a folder. A missing folder has none."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every file under a folder, from one listing."""
        if self.local_root is not None:
            return dict(local_disk.walk(self.local_root, self._local(prefix)))
        from pyarrow import fs

        selector = fs.FileSelector(self._remote(prefix), allow_not_found=True, recursive=True)
        infos = self._filesystem.get_file_info(selector)
        skip = len(self._remote_root) + 1
        return {info.path[skip:]: info.size for info in infos if info.type == fs.FileType.File}

    def fetch(self, path: str, sha256: str | None = None) -> Path:
        """Path of a local file with this content, which must not be written to.

        With `sha256`, or of an expected file, every state is hashed once per process.

        Raises:
            CorruptFile: the content has another hash, or a file whose hash is known is missing.
        """
        sha256 = sha256 or self._expected.get(path)
        with known_file(path, self, is_known=sha256 is not None):
            return self._fetch(path, sha256)

    def _fetch(self, path: str, sha256: str | None) -> Path:
        if self.local_root is not None:
            local = self._local(path)
            local.stat()  # a missing file is an error, as in other stores
            return self._checked(path, local, sha256)
        return self._cache.get(
            sha256 or self._state(path),
            num_bytes=lambda: self._info(path).size or 0,
            build=partial(self._download, path),
            opened=lambda local: self._checked(path, local, sha256),
            touch=self.on_bytes,
        )

    def hash(self, path: str) -> str:
        """sha256 of the bytes that are in the store now, in hex, without any cache."""
        if self.local_root is not None:
            return local_disk.hash_file(self._local(path), self.on_bytes)
        total = hashlib.sha256()
        with self._filesystem.open_input_stream(self._remote(path)) as source:
            for block in self._blocks(source):
                total.update(block)
        return total.hexdigest()

    def free_bytes(self) -> int | None:
        """Free bytes of the disk. None: the store has no such limit."""
        if self.local_root is None:
            return None
        roots = (self.local_root, *self.local_root.parents)
        return shutil.disk_usage(next(root for root in roots if root.exists())).free

    # Writing

    @contextlib.contextmanager
    def writing(self, path: str, guard: Guard = _no_guard) -> Iterator[Sink]:
        """Write a file piece by piece. Local files appear at the end, complete and durable.

        `guard` is called as late as possible before the file appears; if it raises, the file stays
        as it was.
        """
        self._expected.pop(path, None)
        if self.local_root is not None:
            with local_disk.replacing(self._local(path), guard=guard) as file:
                yield _ReportingSink(file, self.on_bytes)
            return
        self._make_folder(path)
        guard()
        with self._filesystem.open_output_stream(self._remote(path)) as stream:
            yield _ReportingSink(stream, self.on_bytes)

    def write(self, path: str, data: Bytes, guard: Guard = _no_guard) -> None:
        """Write or replace a file. Folders are created as needed."""
        with self.writing(path, guard) as sink:
            sink.write(data)

    def copy(self, source: str, path: str, sha256: str, guard: Guard = _no_guard) -> None:
        """Copy a file inside the store, as `writing` does; object stores copy it themselves.

        Raises:
            CorruptFile: the content of a local file has another hash.
        """
        if self.local_root is not None:
            return self._copy_local(source, path, sha256, guard)
        if (self._info(source).size or 0) > _COPY_LIMIT:
            return self._put(self.fetch(source, sha256), path, guard)
        self._make_folder(path)
        guard()
        self._filesystem.copy_file(self._remote(source), self._remote(path))

    def _copy_local(self, source: str, path: str, sha256: str, guard: Guard) -> None:
        total = hashlib.sha256()
        with self._local(source).open("rb") as file, self.writing(path, guard) as sink:
            while block := file.read(_BLOCK):
                total.update(block)
                sink.write(block)
            if total.hexdigest() != sha256:
                raise CorruptFile(f"{source} in {self} is corrupt: its sha256 is not {sha256}")

    def write_new(self, path: str, data: bytes) -> None:
        """Write a file that must not exist yet, durably.

        A local file that exists raises FileExistsError. A killed process leaves a part of the file.
        pyarrow cannot tell for object stores: there the last writer wins.
        """
        if self.local_root is None:
            return self.write(path, data)
        target = self._local(path)
        local_disk.make_dirs(target.parent)
        with target.open("xb") as file:
            try:
                file.write(data)
                local_disk.sync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    target.unlink()
                raise
        local_disk.sync_folder(target.parent)

    def put(self, local: Path, path: str) -> None:
        """Copy a local file into the store."""
        self._put(local, path, _no_guard)

    def _put(self, local: Path, path: str, guard: Guard) -> None:
        with local.open("rb") as source, self.writing(path, guard) as sink:
            while block := source.read(_BLOCK):
                sink.write(block)

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all its files. A missing one is no error."""
        if not path.strip("/"):
            raise ValueError("refusing to delete a whole store")
        if self.local_root is not None:
            return local_disk.delete(self._local(path))
        kind = self._info(path).type.name
        if kind == "Directory":
            self._filesystem.delete_dir(self._remote(path))
        elif kind != "NotFound":
            self._filesystem.delete_file(self._remote(path))

    def probe(self) -> None:
        """Write a marker, read it back, delete it.

        Raises:
            UserError: the store cannot be written to.
        """
        marker, text = f"{PROBE}{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            self.write(marker, text)
            seen = self.read(marker)
            self.delete(marker)
        except OSError as error:
            raise UserError(
                f"storage {self} cannot be written to ({first_line(error)}); "
                "give a folder or bucket that is writable from here and from every node"
            ) from error
        if seen != text:
            raise UserError(
                f"storage {self} returned other bytes than were written to it; give another storage"
            )

    def remove_leftovers(self) -> None:
        """Delete what killed processes left behind: probes, and unfinished writes on a local disk.

        Those of a live process stay: its probe is young, its unfinished file is locked.
        """
        for name, changed_at in self._probes():
            if changed_at < time.time() - _PROBE_S:
                self.delete(name)
        if self.local_root is not None:
            local_disk.remove_unfinished(self.local_root, before=time.time() - _LOCKING_S)

    def _probes(self) -> Iterator[tuple[str, float]]:
        """(name, time of the last change) of the probes in the store."""
        if self.local_root is not None:
            for path in self.local_root.glob(f"{PROBE}*"):
                with contextlib.suppress(FileNotFoundError):  # its owner deleted it
                    yield path.name, path.stat().st_mtime
            return
        for info in self._filesystem.get_file_info(self._top()):
            if info.base_name.startswith(PROBE):
                yield info.base_name, (info.mtime_ns or 0) / 1e9

    def _top(self) -> Any:
        from pyarrow import fs

        return fs.FileSelector(self._remote_root, allow_not_found=True)

    def _local(self, path: str) -> Path:
        assert self.local_root is not None
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} leads out of the store")
        return self.local_root / path

    def _remote(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} leads out of the store")
        return f"{self._remote_root}/{path}".rstrip("/")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.uri, f"storage {self}")

    @property
    def _filesystem(self) -> Any:
        return self._opened[0]

    @property
    def _remote_root(self) -> str:
        return self._opened[1]

    def _info(self, path: str) -> Any:
        return self._filesystem.get_file_info(self._remote(path))

    def _make_folder(self, path: str) -> None:
        if self._filesystem.type_name not in _FLAT:
            self._filesystem.create_dir(self._remote(path).rpartition("/")[0], recursive=True)

    @cached_property
    def _cache(self) -> NodeCache:
        named = self._cache_dir
        folder = None if named is None else local_disk.expanded(named).absolute()
        return store_cache(folder, damage=(CorruptFile,))

    def _state(self, path: str) -> str:
        """Name for the present content of a remote file, from its modification time and size."""
        info = self._info(path)
        if info.type.name == "NotFound":
            raise FileNotFoundError(f"{path} is not in {self}")
        text = f"{self.uri}\n{path}\n{info.mtime_ns}\n{info.size}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _download(self, path: str, file: BinaryIO) -> None:
        with self._filesystem.open_input_stream(self._remote(path)) as source:
            for block in self._blocks(source):
                file.write(block)

    def _checked(self, path: str, local: Path, sha256: str | None) -> Path:
        """`local`, whose content has this hash. A state of it is hashed once per process.

        Raises:
            CorruptFile: the content has another hash.
        """
        status = local.stat()
        state = (status.st_mtime_ns, status.st_size, sha256)
        if sha256 is None or self._hashed.get(str(local)) == state:
            return local
        if local_disk.hash_file(local, self.on_bytes) != sha256:
            raise corrupt(path, self, sha256)
        self._hashed[str(local)] = state
        return local
