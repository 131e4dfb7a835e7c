"""Files of a remote store on a node: one download for all processes."""

import hashlib
import multiprocessing
import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from workers.storage.store import Store

MERGED = bytes(range(250)) * 12_000
SHA256 = hashlib.sha256(MERGED).hexdigest()


class CountingStore(Store):
    """Records every download."""

    def _download(self, path: str, file: BinaryIO) -> None:
        (self._cache.path.parent / f"download-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(0.2)  # a process that does not wait would download too
        super()._download(path, file)


def _fetch(uri: str, cache: str) -> None:
    local = CountingStore(uri, cache).fetch("soups/sync/model.safetensors", SHA256)
    assert local.read_bytes() == MERGED


def test_processes_of_a_node_download_merged_weights_once(s3_uri: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    Store(s3_uri).write("soups/sync/model.safetensors", MERGED)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fetch, args=(s3_uri, cache)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("download-*"))) == 1
    assert [path.name for path in Path(cache).iterdir()] == [SHA256]


def test_stores_share_the_cache_of_their_node(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path))
    store = Store(s3_uri)
    store.write("a", MERGED)
    path = tmp_path / "store" / SHA256
    assert store.fetch("a", SHA256) == Store(s3_uri).fetch("a", SHA256) == path


def test_a_use_changes_the_access_time_only(s3_uri: str, tmp_path: Path) -> None:
    """With a new modification time every process would hash the file at every use."""
    store, path = Store(s3_uri, str(tmp_path)), tmp_path / SHA256
    store.write("a", MERGED)
    written = store.fetch("a", SHA256).stat().st_mtime_ns
    os.utime(path, ns=(0, written))
    store.fetch("a", SHA256)
    assert path.stat().st_mtime_ns == written
    assert path.stat().st_atime > time.time() - 60
