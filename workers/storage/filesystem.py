"""File systems of URIs: a local folder, or whatever pyarrow can open."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from workers.errors import UserError, first_line
from workers.storage import local_disk


def local_root(uri: str) -> Path | None:
    """The folder of a path or file URI. None: it is of another file system."""
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    return None if "://" in uri else Path(os.path.abspath(local_disk.expanded(uri)))


def open_filesystem(uri: str, place: str) -> tuple[Any, str]:
    """The pyarrow file system of a URI and the path in it. `place` names the URI in errors.

    Raises:
        UserError: pyarrow has no file system for this URI.
    """
    import pyarrow
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        # OSError: of a region that is looked up, or a library that is missing.
        raise UserError(
            f"{place} cannot be opened ({first_line(error)}); give a folder, or a URI such as "
            "s3://bucket/folder"
        ) from error
    if not path.strip("/"):
        raise UserError(f"{place} names no bucket; give a URI such as s3://bucket/folder")
    return filesystem, path.rstrip("/")
