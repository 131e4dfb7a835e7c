"""A driver that was replaced while it was frozen changes nothing that anybody reads."""

import hashlib
from pathlib import Path

import pytest

from orchestrator.driver.lease import Lease, LeaseLost
from orchestrator.driver.publish import Publisher
from workers.storage.layout import ANALYSIS, RESULTS, WEIGHTS, staged_path
from workers.storage.store import Store
from workers.types import Analysed, Checkpoint, Served

OLD, NEW = b"old weights", b"new weights"


def soup_in(store: Store, name: str, content: bytes) -> tuple[Served, dict[str, Checkpoint]]:
    sha256 = hashlib.sha256(content).hexdigest()
    store.write(f"soups/{name}/{WEIGHTS}", content)
    checkpoint = Checkpoint(name=f"soup/{name}", step=0, sha256=sha256, num_bytes=len(content))
    event = Served(soup=checkpoint.name, files={WEIGHTS: sha256}, order=f"serve-{name}", attempt=1)
    return event, {checkpoint.name: checkpoint}


def test_a_thawed_driver_publishes_neither_soup_nor_analysis_nor_report(store: Store) -> None:
    frozen, heir = Lease(store, owner="frozen"), Lease(store, owner="heir")
    frozen.acquire()
    old, new = soup_in(store, "old", OLD), soup_in(store, "new", NEW)
    store.write(staged_path("analyse-a", 1, ANALYSIS), b"old")
    heir.acquire(take_over=True)
    Publisher(store, heir).result(*new)
    Publisher(store, heir).write(RESULTS, b"new")
    thawed = Publisher(store, frozen)
    with pytest.raises(LeaseLost, match="heir"):
        thawed.result(*old)
    with pytest.raises(LeaseLost, match="heir"):
        thawed.write(RESULTS, b"old")
    with pytest.raises(LeaseLost, match="heir"):
        thawed.result(Analysed(key="a", busy_s=0.0, order="analyse-a", attempt=1), {})
    assert store.read(f"soup/{WEIGHTS}") == NEW
    assert store.read(RESULTS) == b"new"
    assert not store.exists(ANALYSIS)


def test_a_lease_lost_while_a_large_file_is_copied_leaves_the_old_one(tmp_path: Path) -> None:
    """The look at the lease is the last step before the file appears."""
    store = Store(str(tmp_path / "store"))
    lease = Lease(store, owner="frozen")
    lease.acquire()
    store.write(f"soup/{WEIGHTS}", NEW)
    with pytest.raises(LeaseLost), store.writing(f"soup/{WEIGHTS}", guard=lease.check) as sink:
        sink.write(OLD)
        Lease(store, owner="heir").acquire(take_over=True)
    assert store.read(f"soup/{WEIGHTS}") == NEW
    assert [path.name for path in (tmp_path / "store" / "soup").iterdir()] == [WEIGHTS]


def test_a_soup_that_changed_since_it_was_checked_is_a_failure(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    lease = Lease(store, owner="driver")
    lease.acquire()
    event, soups = soup_in(store, "s", OLD)
    store.write(f"soups/s/{WEIGHTS}", NEW)
    failed = Publisher(store, lease).result(event, soups)
    assert failed.kind == "failed" and failed.error == "corrupt"
    assert failed.checkpoint == "soup/s" and failed.order == "serve-s"
    assert not store.exists(f"soup/{WEIGHTS}")
