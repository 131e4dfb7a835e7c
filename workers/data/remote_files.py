"""Bytes of data files, whole or by range: local, behind a pyarrow.fs URI, or over http."""

import contextlib
import io
import os
import threading
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from glob import glob
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from workers.errors import UserError, first_line
from workers.storage.filesystem import open_filesystem
from workers.storage.local_disk import expanded
from workers.storage.store import Store
from workers.text import without_credentials

OPEN_FILES = 64
"""Remote files that stay open, because opening one costs a round trip."""
WINDOW = 128 << 10
"""Bytes per request when a remote file is read from end to end."""


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def public_uri(uri: str) -> str:
    """The URI without credentials and query; local paths as they are."""
    return str(Store(uri)) if is_remote(uri) else uri


def with_credentials_of(uri: str, others: Iterable[str]) -> str:
    """The URI with the credentials and the query of the first of `others` at the same host."""
    if not is_remote(uri):
        return uri
    body = uri.partition("?")[0]
    scheme, _, place = body.partition("://")
    for other in filter(is_remote, others):
        public = without_credentials(other)
        if public != other and urlsplit(public)[:2] == urlsplit(body)[:2]:
            user, at, _ = urlsplit(other).netloc.rpartition("@")
            _, mark, query = other.partition("?")
            return f"{scheme}://{user}{at}{place}{mark}{query}"
    return uri


def join(root: str, path: str) -> str:
    """`path` below `root`, unless it is a URI or absolute itself.

    Local paths become plain and absolute. The query of a root stays at the end.
    """
    if "://" in path:
        return path if is_remote(path) else unquote(urlsplit(path).path)
    if is_remote(root):
        body, mark, query = root.partition("?")
        return f"{body.rstrip('/')}/{path}{mark}{query}"
    local = unquote(urlsplit(root).path) if root.startswith("file://") else root
    return os.path.abspath(os.path.join(expanded(local), expanded(path)))


class Files:
    """Reader of files by local path or URI. Safe to use from several threads.

    Remote files stay open, per process and thread. A pickled copy has none open. A missing file
    raises FileNotFoundError, a place that does not answer OSError with its URI.
    """

    def __init__(self) -> None:
        # Connections do not survive a fork, and threads cannot share a position in a file.
        self._open_files = lru_cache(OPEN_FILES)(lambda uri, pid, thread: self._open(uri))
        self._open_folders = lru_cache(OPEN_FILES)(
            lambda uri, pid: open_filesystem(uri, public_uri(uri))
        )

    def __reduce__(self) -> tuple[type["Files"], tuple[()]]:
        return Files, ()

    def read(self, uri: str, offset: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `offset`, or all from there on. OSError if the file is shorter."""
        if is_remote(uri):
            content = self._read_remote(uri, offset, size)
        else:
            with open(uri, "rb") as file:
                file.seek(offset)
                content = file.read(-1 if size is None else size)
        if size is not None and len(content) != size:
            raise OSError(
                f"{public_uri(uri)} ends before byte {offset + size}; it has become shorter"
            )
        return content

    def size(self, uri: str) -> int:
        if not is_remote(uri):
            return os.stat(uri).st_size
        with _naming(uri):
            return int(self._open_files(uri, os.getpid(), threading.get_ident()).size())

    def open(self, uri: str) -> BinaryIO:
        """The file, open for reading and seeking. Remote files are read by `WINDOW` bytes."""
        if not is_remote(uri):
            return open(uri, "rb")
        with _naming(uri):
            return io.BufferedReader(self._open(uri), WINDOW)

    def matching(self, root: str, pattern: str) -> list[str]:
        """Sorted paths, relative to `root`, of files that match a pattern with `*`."""
        if not is_remote(root):
            return sorted(glob(pattern, root_dir=join(root, ".")))
        folder, _, name = pattern.rpartition("/")
        if is_http(root) or "*" in folder:
            raise UserError(
                f"pattern {pattern!r} cannot be looked up below {public_uri(root)}; "
                "write the numbers out, as in shard-{000000..000099}.tar"
            )
        names = self._names(join(root, folder) if folder else root)
        return sorted(f"{folder}/{file}".lstrip("/") for file in names if fnmatchcase(file, name))

    def _names(self, uri: str) -> list[str]:
        """Names of the files directly in a remote folder."""
        from pyarrow import fs

        with _naming(uri):
            filesystem, path = self._open_folders(uri, os.getpid())
            infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return [info.base_name for info in infos if info.type == fs.FileType.File]

    def _read_remote(self, uri: str, offset: int, size: int | None) -> bytes:
        with _naming(uri):
            file = self._open_files(uri, os.getpid(), threading.get_ident())
            return bytes(file.read_at(file.size() - offset if size is None else size, offset))

    def _open(self, uri: str) -> Any:
        """A pyarrow NativeFile."""
        if is_http(uri):
            return _open_http(uri)
        body, mark, query = uri.partition("?")
        folder, _, name = body.rpartition("/")
        # One file system for all files of a folder, because every one opens connections.
        filesystem, path = self._open_folders(folder + mark + query, os.getpid())
        return filesystem.open_input_file(f"{path}/{name}")


def _open_http(uri: str) -> Any:
    import pyarrow
    from fsspec.implementations.http import HTTPFileSystem

    # No reading ahead, because images are read in random order.
    http = HTTPFileSystem(cache_type="none", client_kwargs={"trust_env": True})
    try:
        return pyarrow.PythonFile(http.open(uri), mode="r")
    except FileNotFoundError as error:  # fsspec raises it for any failure
        if getattr(error.__cause__, "status", None) in (404, 410):
            raise
        raise OSError(str(error.__cause__)) from error


@contextlib.contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Translate errors of remote places to OSError with the URI."""
    from aiohttp import ClientError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{public_uri(uri)} is not there") from error
    except (OSError, ClientError) as error:
        raise OSError(f"{public_uri(uri)} does not answer: {first_line(error)}") from error
    except ValueError as error:
        if not is_http(uri):
            raise
        raise UserError(
            f"the server of {public_uri(uri)} does not answer requests for a range of bytes; "
            "copy the file to a folder or bucket, or use a server that does"
        ) from error
