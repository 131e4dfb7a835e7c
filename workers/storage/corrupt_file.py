"""Errors of files that are not what was written."""

import contextlib
from collections.abc import Iterator


class CorruptFile(OSError):
    """A file of the store differs from what was written. The message names it."""


class MissingFile(CorruptFile, FileNotFoundError):
    """A file that must be in the store is not there. The message names it."""


def corrupt(path: str, store: object, sha256: str) -> CorruptFile:
    """The error for a file with another hash."""
    return CorruptFile(f"{path} in {store} is corrupt: its sha256 is no longer {sha256[:12]}...")


@contextlib.contextmanager
def known_file(path: str, store: object, is_known: bool) -> Iterator[None]:
    """Reading a file; if its hash is known, a missing one is an error of its own."""
    try:
        yield
    except FileNotFoundError as error:
        if not is_known:
            raise
        raise MissingFile(f"{path} in {store} is missing") from error
