"""Publishing: what readers of a store rely on is put in place by the holder of the lease.

    worker --> soups/<id>/, staged/ --> event --> driver: lease read --> soup/, analysis.json

A worker may outlive its driver, and a driver may be frozen and thaw, so neither writes such a file
directly: each file appears right after a look at the lease.
"""

from collections.abc import Mapping

from orchestrator.driver.lease import Lease
from workers.errors import first_line
from workers.storage.layout import ANALYSIS, SERVED, checkpoint_dir, staged_path
from workers.storage.manifest import read_manifest
from workers.storage.store import CorruptFile, Store
from workers.types import Analysed, AnyEvent, Checkpoint, Failed, Served


class Publisher:
    """Writes files of a store while the lease is held."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease

    def write(self, path: str, data: bytes) -> None:
        """Write a file, unless the lease was lost."""
        self._store.write(path, data, guard=self._lease.check)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write files in this order."""
        for path, data in files.items():
            self.write(path, data)

    def result(self, event: AnyEvent, soups: Mapping[str, Checkpoint]) -> AnyEvent:
        """The event, once the files that it announces are in place; or a failure in its stead."""
        if isinstance(event, Analysed):
            self._publish_analysis(event)
        if isinstance(event, Served) and event.soup is not None and event.soup in soups:
            return self._publish_soup(event, soups[event.soup])
        return event

    def _publish_soup(self, event: Served, soup: Checkpoint) -> AnyEvent:
        try:
            for name, sha256 in event.files.items():
                source = f"{checkpoint_dir(soup.id)}/{name}"
                self._store.copy(source, f"{SERVED}/{name}", sha256, guard=self._lease.check)
        except (CorruptFile, FileNotFoundError) as error:
            origin = event.model_dump(include={"order", "run", "attempt", "slot", "heard_at"})
            message = first_line(error)
            return Failed(error="corrupt", message=message, checkpoint=soup.id, **origin)
        return event

    def _publish_analysis(self, event: Analysed) -> None:
        staged = staged_path(event.order or "", event.attempt or 0, ANALYSIS)
        if not self._store.exists(staged):
            return  # published by a driver that ended before it wrote the event down
        self.write(ANALYSIS, self._store.read(staged))
        self._store.delete(staged.rpartition("/")[0])


def served_problem(store: Store, served: Served | None, soups: Mapping[str, Checkpoint]) -> str:
    """The first file of `soup/` that is not what was served, and why. Empty: there is none."""
    if served is None or served.soup is None or served.soup not in soups:
        return ""
    for name, sha256 in (served.files or _recorded(store, soups[served.soup])).items():
        if (problem := _problem(store, f"{SERVED}/{name}", sha256)) is not None:
            return f"{SERVED}/{name} {problem}"
    return ""


def _recorded(store: Store, soup: Checkpoint) -> dict[str, str]:
    """sha256 of the copied files, by name, for an event of an old ledger."""
    stored = read_manifest(store, soup.id)
    return {name: file.sha256 for name, file in stored.files.items()} if stored else {}


def _problem(store: Store, path: str, sha256: str) -> str | None:
    if not store.exists(path):
        return "is missing"
    return None if store.hash(path) == sha256 else "has other bytes than were served"
