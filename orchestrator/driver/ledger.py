"""The ledger: all events of an experiment, in order. Their replay is the state.

    ledger/00000000.jsonl   seq 0..4      one file per group of events, named by its first seq,
    ledger/00000005.jsonl   seq 5         written once
    ledger/00000006.jsonl   seq 6..9  <-  the last may be torn if its writer was killed

The last line of a group also has `crc32`, the checksum of the group without it; every line is an
event. A torn file has none, and those of earlier versions have none.

There is one writer. A lease keeps a second one away; on a local disk, so does exclusive creation.
"""

import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from pydantic import ValidationError

from workers.errors import UserError
from workers.storage.layout import LEDGER
from workers.storage.store import CorruptFile, Store
from workers.types import AnyEvent, event_adapter

_READERS = 32
"""Files of a remote ledger that are read at a time; each costs a round trip."""


_CHECKSUM = re.compile(rb',"crc32":(\d{1,10})\}\n\Z')


class Ledger:
    """Appends groups of events, and reads all of them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._next: int | None = None
        """Sequence number of the next event. None: the ledger was not read yet."""
        self._torn: tuple[str, bytes] | None = None
        """Path and complete lines of a torn last file."""
        self._unsure: str | None = None
        """Path of a file whose writing failed: it may be there, whole or in part."""

    def replay(self) -> list[AnyEvent]:
        """All events by seq, without a torn line at the end of the last file.

        Raises:
            CorruptFile: a gap or an unreadable line anywhere else, with the name of the file.
        """
        events: list[AnyEvent] = []
        self._torn = None
        paths = self._paths()
        for path, text in zip(paths, self._texts(paths), strict=True):
            whole = text[: text.rfind(b"\n") + 1]
            if not whole or len(whole) < len(text):
                self._note_torn(path, whole, is_last=path == paths[-1])
            events += self._parse(path, whole, first=len(events))
        self._next = len(events)
        return events

    def append(self, events: list[AnyEvent]) -> list[AnyEvent]:
        """Write one group durably. Returns it with its sequence numbers.

        After an OSError the same group may be appended again, and no other.

        Raises:
            UserError: another driver has written to this ledger.
        """
        if not events:
            return []
        first = self._next_seq()
        numbered = [e.model_copy(update={"seq": first + i}) for i, e in enumerate(events)]
        text = with_checksum("".join(event.model_dump_json() + "\n" for event in numbered))
        path = f"{LEDGER}/{first:08d}.jsonl"
        self._write(path, text.encode())
        self._next = first + len(events)
        return numbered

    def _write(self, path: str, text: bytes) -> None:
        try:
            self._write_again(path, text) if self._unsure == path else self._write_new(path, text)
        except OSError:
            self._unsure = path
            raise
        self._unsure = None

    def _write_new(self, path: str, text: bytes) -> None:
        try:
            self.store.write_new(path, text)
        except FileExistsError as error:
            raise self._written_by_another(path) from error

    def _write_again(self, path: str, text: bytes) -> None:
        """Replace what a failed attempt left, which is the beginning of the same text."""
        if self.store.exists(path) and not text.startswith(self.store.read(path)):
            raise self._written_by_another(path)
        self.store.write(path, text)

    def _written_by_another(self, path: str) -> UserError:
        return UserError(
            f"{path} in {self.store} was written by another driver while this one was "
            "running; an experiment has one driver, so stop the other one or this one"
        )

    def _paths(self) -> list[str]:
        """Files of the ledger, by number: a name with nine digits comes after those with eight."""
        paths = [path for path in self.store.list(LEDGER) if path.endswith(".jsonl")]
        return sorted(paths, key=self._first_seq)

    def _first_seq(self, path: str) -> int:
        stem = PurePosixPath(path).stem
        if not stem.isdecimal():
            raise CorruptFile(f"{path} in {self.store} is not a file of a ledger; remove it")
        return int(stem)

    def _texts(self, paths: list[str]) -> Iterator[bytes]:
        if self.store.is_local:
            yield from map(self.store.read, paths)
            return
        with ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(self.store.read, paths)

    def _note_torn(self, path: str, whole: bytes, is_last: bool) -> None:
        if not is_last:
            raise CorruptFile(
                f"{path} in {self.store} is cut short, but is not the last file of the ledger"
            )
        self._torn = (path, whole)

    def _parse(self, path: str, text: bytes, first: int) -> list[AnyEvent]:
        if self._first_seq(path) != first:
            raise CorruptFile(
                f"{path} in {self.store} does not follow event {first - 1}: "
                "a file of the ledger is missing or was added"
            )
        text = self._checked(path, text)
        try:
            events = [event_adapter.validate_json(line) for line in text.splitlines()]
        except ValidationError as error:
            raise CorruptFile(
                f"{path} in {self.store} has a line that is not an event: {error}"
            ) from error
        for seq, event in enumerate(events, start=first):
            if event.seq != seq:
                raise CorruptFile(f"{path} in {self.store} has event {event.seq} in place of {seq}")
        return events

    def _checked(self, path: str, text: bytes) -> bytes:
        """The lines without their checksum, which must be right if there is one."""
        match = _CHECKSUM.search(text)
        if match is None:
            return text
        plain = text[: match.start()] + b"}\n"
        if zlib.crc32(plain) != int(match.group(1)):
            raise CorruptFile(
                f"{path} in {self.store} was changed: its checksum is not that of its events; "
                "restore the file from a backup"
            )
        return plain

    def _next_seq(self) -> int:
        if self._next is None:
            self.replay()
        assert self._next is not None
        self._repair()
        return self._next

    def _repair(self) -> None:
        """Cut a torn last file to its complete lines, so that the next file continues it."""
        if self._torn is None:
            return
        path, whole = self._torn
        if whole:
            self.store.write(path, whole)
        else:
            self.store.delete(path)
        self._torn = None


def with_checksum(text: str) -> str:
    """The lines of a group, with their checksum in the last one."""
    return f'{text[:-2]},"crc32":{zlib.crc32(text.encode())}}}\n'
