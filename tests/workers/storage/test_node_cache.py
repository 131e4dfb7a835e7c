"""The cache of a node: one build for all processes, eviction by size, no half-written files."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from workers.data.pixel_file import mapped
from workers.errors import UserError
from workers.storage.local_disk import locked
from workers.storage.node_cache import (
    RECENT_S,
    NodeCache,
    disk_cache,
    memory_cache,
    store_cache,
)

FORK = multiprocessing.get_context("fork")


def write(content: bytes) -> Callable[[BinaryIO], None]:
    def build(file: BinaryIO) -> None:
        file.write(content)

    return build


def get(cache: NodeCache, name: str, size: int = 100) -> bytes:
    """The content of this file, which is built of `size` zeros."""
    return cache.get(name, lambda: size, write(bytes(size)), Path.read_bytes)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_two_processes_build_once_and_the_second_beats_while_it_waits(tmp_path: Path) -> None:
    cache, log, beats = NodeCache(tmp_path / "cache"), tmp_path / "log", tmp_path / "beats"

    def build(file: BinaryIO) -> None:
        with log.open("a") as lines:
            lines.write("built\n")
        time.sleep(0.3)
        file.write(b"pixels")

    def beat() -> None:
        with beats.open("a") as lines:
            lines.write(f"{os.getpid()}\n")

    def work() -> None:
        content = cache.get("a.arrow", lambda: 6, build, Path.read_bytes, beat)
        os._exit(0 if content == b"pixels" else 1)

    processes = [FORK.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"
    assert len(set(beats.read_text().split())) == 1
    assert names(cache.path) == {"a.arrow"}


def test_a_killed_builder_frees_its_lock_and_its_unfinished_file_is_deleted(
    tmp_path: Path,
) -> None:
    cache = NodeCache(tmp_path)

    def die(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def work(name: str) -> None:
        cache.get(name, lambda: 4, die, Path.read_bytes)

    for name in ("a.arrow", "b.arrow"):  # the second deletes what the first left
        process = FORK.Process(target=work, args=(name,))
        process.start()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
        assert [path.name[:8] for path in tmp_path.glob(".*.tmp")] == [f".{name}"]
    assert get(cache, "b.arrow") == bytes(100)
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_unfinished_file_of_a_live_builder_stays(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path)

    def build(file: BinaryIO) -> None:
        get(cache, "b.arrow")
        file.write(b"whole")

    assert cache.get("a.arrow", lambda: 5, build, Path.read_bytes) == b"whole"
    assert names(tmp_path) == {"a.arrow", "b.arrow"}


def test_the_least_recently_used_file_is_evicted_first(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit=300)
    for seconds, name in ((30, "a.arrow"), (20, "b.arrow"), (10, "c.arrow")):
        get(cache, name)
        age(tmp_path / name, seconds)
    get(cache, "a.arrow")  # used again
    get(cache, "d.arrow")
    assert names(tmp_path) == {"a.arrow", "c.arrow", "d.arrow"}


def test_a_mapped_file_is_not_evicted(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit=250)
    get(cache, "a.arrow")
    get(cache, "b.arrow")
    age(tmp_path / "a.arrow", 100)
    memory = mapped(tmp_path / "a.arrow")
    age(tmp_path / "a.arrow", 100)
    get(cache, "c.arrow")
    assert names(tmp_path) == {"a.arrow", "c.arrow"}
    memory.close()
    get(cache, "d.arrow")
    assert names(tmp_path) == {"c.arrow", "d.arrow"}


def test_memory_gives_up_every_file_that_no_process_maps(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, keeps_unused=False)
    get(cache, "a.arrow")
    get(cache, "b.arrow")
    memory = mapped(tmp_path / "b.arrow")
    get(cache, "c.arrow")
    assert names(tmp_path) == {"b.arrow", "c.arrow"}
    memory.close()


def test_a_file_without_room_is_refused_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no room for 0\.50 GB"):
        get(NodeCache(tmp_path, limit=10**6), "a.arrow", 5 * 10**8)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file") as caught:
        get(NodeCache(tmp_path / "file" / "cache"), "a.arrow")
    assert caught.value.errno is not None


def test_an_error_of_the_build_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def build(file: BinaryIO) -> None:
        raise OSError("training image 7 can no longer be read")

    with pytest.raises(OSError, match="image 7") as caught:
        NodeCache(tmp_path).get("a.arrow", lambda: 1, build, Path.read_bytes)
    assert caught.value.errno is None and not list(tmp_path.iterdir())


def test_a_lock_that_its_last_owner_deleted_is_taken_anew(tmp_path: Path) -> None:
    path, order = tmp_path / ".lock", []

    def release_first() -> None:
        order.append("waits")
        first.__exit__(None, None, None)

    first = locked(path, lambda: None)
    first.__enter__()
    with locked(path, release_first):
        assert order == ["waits"] and path.exists()
    assert not path.exists()


def test_the_environment_names_folder_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "1.5")
    assert disk_cache() == NodeCache(tmp_path / "here", limit=1_500_000_000)
    assert store_cache(None).path == tmp_path / "here" / "store"
    assert not memory_cache().keeps_unused
    monkeypatch.delenv("SOUPFLEET_CACHE")
    monkeypatch.delenv("SOUPFLEET_CACHE_GB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk_cache() == NodeCache(tmp_path / "soupfleet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert disk_cache().path == Path.home() / ".cache" / "soupfleet"


@pytest.mark.parametrize("cache", [disk_cache, memory_cache, lambda: store_cache(None)])
def test_a_size_that_is_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, cache: Callable[[], NodeCache]
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "plenty")
    with pytest.raises(UserError, match="SOUPFLEET_CACHE_GB.*'plenty'"):
        cache()


def test_downloads_used_a_moment_ago_stay_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "2.5e-6")
    cache = store_cache(tmp_path)
    for name in ("a", "b", "c"):
        get(cache, name, 1000)
    assert names(tmp_path) == {"a", "b", "c"}
    for i, name in enumerate(("a", "b", "c")):
        age(tmp_path / name, 2 * RECENT_S - i)
    get(cache, "d", 1000)
    assert names(tmp_path) == {"c", "d"}
