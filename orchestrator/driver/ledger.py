"""The ledger: everything that happened, in order, and nothing else. Its replay is the state.

    ledger/00000000.jsonl   seq 0..4      one file per group of events, named by its first seq,
    ledger/00000005.jsonl   seq 5         written once
    ledger/00000006.jsonl   seq 6..9  <-  the last may be torn: its writer was killed in here

One writer; a lease keeps a second one away, and on local disks so does exclusive creation.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from pydantic import ValidationError

from workers.errors import UserError
from workers.storage.layout import LEDGER
from workers.storage.store import CorruptFile, Store
from workers.types import AnyEvent, event_adapter

_READERS = 32
"""Files of a remote ledger read at a time; each costs a round trip."""


class Ledger:
    """Appends groups of events and reads them all back."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._next: int | None = None
        """Sequence number of the next event; None before the ledger was read."""
        self._torn: tuple[str, bytes] | None = None
        """Path of a torn last file and the complete lines of it."""

    def replay(self) -> list[AnyEvent]:
        """All events, by seq. A torn end of the last file is left out; it is no one's fault.

        Raises:
            CorruptFile: a gap or garbage anywhere else, naming the file.
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
        """Write one group, durably, and return it with its sequence numbers.

        Raises:
            UserError: another driver wrote here.
        """
        if not events:
            return []
        first = self._next_seq()
        numbered = [e.model_copy(update={"seq": first + i}) for i, e in enumerate(events)]
        text = "".join(event.model_dump_json() + "\n" for event in numbered)
        path = f"{LEDGER}/{first:08d}.jsonl"
        try:
            self.store.write_new(path, text.encode())
        except FileExistsError as error:
            raise UserError(
                f"{path} in {self.store} was written by another driver while this one was "
                "running; only one may drive an experiment, so stop the other one or this one"
            ) from error
        self._next = first + len(events)
        return numbered

    def _paths(self) -> list[str]:
        """The ledger's files by first seq; a name with a nine-digit seq sorts last, too."""
        paths = [path for path in self.store.list(LEDGER) if path.endswith(".jsonl")]
        return sorted(paths, key=self._first_seq)

    def _first_seq(self, path: str) -> int:
        stem = PurePosixPath(path).stem
        if not stem.isdigit():
            raise CorruptFile(f"{path} in {self.store} does not belong into a ledger")
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
                f"{path} in {self.store} is cut short, and the ledger goes on after it"
            )
        self._torn = (path, whole)

    def _parse(self, path: str, text: bytes, first: int) -> list[AnyEvent]:
        if self._first_seq(path) != first:
            raise CorruptFile(
                f"{path} in {self.store} does not follow event {first - 1}: "
                "a file of the ledger is missing or was put there"
            )
        try:
            events = [event_adapter.validate_json(line) for line in text.splitlines()]
        except ValidationError as error:
            raise CorruptFile(
                f"{path} in {self.store} holds a line that is not an event: {error}"
            ) from error
        for seq, event in enumerate(events, start=first):
            if event.seq != seq:
                raise CorruptFile(f"{path} in {self.store} has event {event.seq} in place of {seq}")
        return events

    def _next_seq(self) -> int:
        if self._next is None:
            self.replay()
        assert self._next is not None
        self._mend()
        return self._next

    def _mend(self) -> None:
        """Cut a torn last file to its complete lines, so that what follows is contiguous."""
        if self._torn is None:
            return
        path, whole = self._torn
        if whole:
            self.store.write(path, whole)
        else:
            self.store.delete(path)
        self._torn = None
