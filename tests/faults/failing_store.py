"""A real store in a folder whose operations fail for a while."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from workers.storage.store import Guard, Sink, Store

WRITES = frozenset({"write", "write_new", "delete", "copy"})
READS = frozenset({"read", "exists", "is_file", "sizes", "hash"})

ERRORS = {
    "full": (WRITES, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "read-only": (WRITES, OSError(errno.EROFS, os.strerror(errno.EROFS))),
    "broken": (WRITES | READS, OSError(errno.EIO, os.strerror(errno.EIO))),
    "silent": (WRITES | READS, TimeoutError(errno.ETIMEDOUT, "the store does not answer")),
}
"""Kind of trouble -> (operations that fail, their error)."""


@dataclass
class Outage:
    """Trouble of one kind, which lasts for so many operations."""

    kind: str
    remaining: int
    is_due: Callable[[], bool] = lambda: True
    """Whether it has begun."""
    failures: int = field(default=0, init=False)

    def strike(self, operation: str, path: str) -> None:
        """Raise the error if the operation fails now."""
        operations, error = ERRORS[self.kind]
        if operation in operations and self.remaining > 0 and self.is_due():
            self.remaining -= 1
            self.failures += 1
            raise type(error)(error.errno, error.strerror, path)


class FailingStore(Store):
    """A local store with an outage. A failing `write_new` leaves half of the file behind."""

    def __init__(self, uri: str, outage: Outage) -> None:
        super().__init__(uri)
        self.outage = outage

    def read(self, path: str) -> bytes:
        self.outage.strike("read", path)
        return super().read(path)

    def exists(self, path: str) -> bool:
        self.outage.strike("exists", path)
        return super().exists(path)

    def is_file(self, path: str) -> bool:
        self.outage.strike("is_file", path)
        return super().is_file(path)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        self.outage.strike("sizes", prefix)
        return super().sizes(prefix)

    def hash(self, path: str) -> str:
        self.outage.strike("hash", path)
        return super().hash(path)

    @contextmanager
    def writing(self, path: str, guard: Guard = lambda: None) -> Iterator[Sink]:
        self.outage.strike("write", path)
        with super().writing(path, guard) as sink:
            yield sink

    def write_new(self, path: str, data: bytes) -> None:
        try:
            self.outage.strike("write_new", path)
        except OSError:
            if self.outage.failures == 1:
                super().write_new(path, data[: len(data) // 2])
            raise
        super().write_new(path, data)

    def copy(self, source: str, path: str, sha256: str, guard: Guard = lambda: None) -> None:
        self.outage.strike("copy", path)
        super().copy(source, path, sha256, guard)

    def delete(self, path: str) -> None:
        self.outage.strike("delete", path)
        super().delete(path)
