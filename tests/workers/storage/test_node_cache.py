"""Files of a remote store on a node: one download for all processes, eviction by size."""

import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from workers.errors import UserError
from workers.storage import node_cache
from workers.storage.store import Store

MERGED = bytes(range(250)) * 12_000
NAME = hashlib.sha256(MERGED).hexdigest()


class Counted(Store):
    """Writes down every download."""

    def _download(self, path: str, file: BinaryIO) -> None:
        (self._cache.parent / f"download-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(0.2)  # so that whoever does not wait is caught
        super()._download(path, file)


def _fetch(uri: str, cache: str) -> None:
    content = Counted(uri, cache).fetch("soups/sync/model.safetensors", NAME).read_bytes()
    assert content == MERGED


def test_members_on_a_node_read_merged_weights_from_the_store_once(
    s3_uri: str, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    Store(s3_uri).write("soups/sync/model.safetensors", MERGED)
    context = multiprocessing.get_context("spawn")
    members = [context.Process(target=_fetch, args=(s3_uri, cache)) for _ in range(3)]
    for member in members:
        member.start()
    for member in members:
        member.join(60)
    assert [member.exitcode for member in members] == [0, 0, 0]
    assert len(list(tmp_path.glob("download-*"))) == 1
    assert [file.name for file in Path(cache).iterdir()] == [NAME]


def test_workers_share_the_cache_of_their_node(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path))
    store = Store(s3_uri)
    store.write("a", MERGED)
    assert store.fetch("a", NAME) == Store(s3_uri).fetch("a", NAME) == tmp_path / "store" / NAME


def test_use_is_noted_without_making_a_file_new(s3_uri: str, tmp_path: Path) -> None:
    """Else each process would hash it again at every use."""
    store, kept = Store(s3_uri, str(tmp_path)), tmp_path / NAME
    store.write("a", MERGED)
    written = store.fetch("a", NAME).stat().st_mtime_ns
    os.utime(kept, ns=(0, written))
    store.fetch("a", NAME)
    assert kept.stat().st_mtime_ns == written
    assert kept.stat().st_atime > time.time() - 60


def test_what_was_unused_longest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "2.5e-6")
    now = time.time()
    for age, name in enumerate(["new", "old", "oldest"]):
        (tmp_path / name).write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (now - age, now - age))
    node_cache.evict(tmp_path, spare=tmp_path / "new", now=now)
    assert len(list(tmp_path.iterdir())) == 3  # all were used a moment ago
    node_cache.evict(tmp_path, spare=tmp_path / "new", now=now + 2 * node_cache.RECENT_S)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}


def test_what_a_killed_download_left_goes_once_it_is_old(tmp_path: Path) -> None:
    left, whole = tmp_path / ".abc.1.tmp", tmp_path / "abc"
    for path in (left, whole):
        path.write_bytes(b"x")
    node_cache.evict(tmp_path, spare=whole)
    assert left.exists()
    node_cache.evict(tmp_path, spare=whole, now=time.time() + 2 * node_cache.RECENT_S)
    assert not left.exists() and whole.exists()


def test_a_limit_that_is_no_number_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "lots")
    with pytest.raises(UserError, match="SOUPFLEET_CACHE_GB is 'lots'"):
        node_cache.evict(tmp_path, spare=tmp_path / "x")
