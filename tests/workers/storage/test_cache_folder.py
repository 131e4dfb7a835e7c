"""The cache's folder: built once whoever asks, evicted by size, never half there."""

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
from workers.storage.cache_folder import CacheFolder, Unusable, disk_folder, memory_folder
from workers.storage.local_disk import locked

FORK = multiprocessing.get_context("fork")


def write(content: bytes) -> Callable[[BinaryIO], None]:
    def build(file: BinaryIO) -> None:
        file.write(content)

    return build


def keep(folder: CacheFolder, name: str, size: int = 100) -> bytes:
    """What lies under this name, `size` bytes if it must be written first."""
    return folder.keep(name, lambda: size, write(bytes(size)), Path.read_bytes, lambda: None)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_two_processes_at_once_build_once_and_the_second_lives_while_it_waits(
    tmp_path: Path,
) -> None:
    folder, log, beats = CacheFolder(tmp_path / "cache"), tmp_path / "log", tmp_path / "beats"

    def build(file: BinaryIO) -> None:
        with log.open("a") as lines:
            lines.write("built\n")
        time.sleep(0.3)
        file.write(b"pixels")

    def beat() -> None:
        with beats.open("a") as lines:
            lines.write(f"{os.getpid()}\n")

    def work() -> None:
        found = folder.keep("a.arrow", lambda: 6, build, Path.read_bytes, beat)
        os._exit(0 if found == b"pixels" else 1)

    processes = [FORK.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"
    assert len(set(beats.read_text().split())) == 1
    assert [path.name for path in folder.path.iterdir()] == ["a.arrow"]


def test_a_builder_that_is_killed_frees_its_lock_and_its_ruins_are_cleared(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path)

    def die(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def work(name: str) -> None:
        folder.keep(name, lambda: 4, die, Path.read_bytes, lambda: None)

    for name in ("a.arrow", "b.arrow"):  # the second clears what the first left
        process = FORK.Process(target=work, args=(name,))
        process.start()
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
        assert [path.name[:8] for path in tmp_path.glob(".*.tmp")] == [f".{name}"]
    assert keep(folder, "b.arrow") == bytes(100)
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_ruins_of_a_builder_at_work_are_left_alone(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path)

    def build(file: BinaryIO) -> None:
        keep(folder, "b.arrow")
        file.write(b"whole")

    assert (
        folder.keep("a.arrow", lambda: 5, build, Path.read_bytes, lambda: None),
        (tmp_path / "b.arrow").exists(),
    ) == (b"whole", True)


def test_what_was_not_used_for_longest_is_evicted_first(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, limit=300)
    for seconds, name in ((30, "a.arrow"), (20, "b.arrow"), (10, "c.arrow")):
        keep(folder, name)
        age(tmp_path / name, seconds)
    keep(folder, "a.arrow")  # used again
    keep(folder, "d.arrow")
    assert {path.name for path in tmp_path.glob("*.arrow")} == {"a.arrow", "c.arrow", "d.arrow"}


def test_what_a_process_maps_is_not_evicted(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, limit=250)
    keep(folder, "a.arrow")
    keep(folder, "b.arrow")
    age(tmp_path / "a.arrow", 100)
    memory = mapped(tmp_path / "a.arrow")
    keep(folder, "c.arrow")
    assert {path.name for path in tmp_path.glob("*.arrow")} == {"a.arrow", "c.arrow"}
    memory.close()
    keep(folder, "d.arrow")
    assert {path.name for path in tmp_path.glob("*.arrow")} == {"c.arrow", "d.arrow"}


def test_memory_gives_back_what_nobody_maps(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, sheds_unused=True)
    keep(folder, "a.arrow")
    keep(folder, "b.arrow")
    memory = mapped(tmp_path / "b.arrow")
    keep(folder, "c.arrow")
    assert {path.name for path in tmp_path.glob("*.arrow")} == {"b.arrow", "c.arrow"}
    memory.close()


def test_what_does_not_fit_is_refused_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"no room for 0\.50 GB"):
        keep(CacheFolder(tmp_path, limit=10**6), "a.arrow", 5 * 10**8)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unusable, match="file"):
        keep(CacheFolder(tmp_path / "file" / "cache"), "a.arrow")


def test_what_a_build_raises_by_itself_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def build(file: BinaryIO) -> None:
        raise OSError("training image 7 can no longer be read")

    with pytest.raises(OSError, match="image 7") as caught:
        CacheFolder(tmp_path).keep("a.arrow", lambda: 1, build, Path.read_bytes, lambda: None)
    assert not isinstance(caught.value, Unusable) and not list(tmp_path.iterdir())


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
    assert disk_folder() == CacheFolder(tmp_path / "here", 1_500_000_000)
    assert memory_folder().sheds_unused
    monkeypatch.delenv("SOUPFLEET_CACHE")
    monkeypatch.delenv("SOUPFLEET_CACHE_GB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk_folder() == CacheFolder(tmp_path / "soupfleet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert disk_folder().path == Path.home() / ".cache" / "soupfleet"
    monkeypatch.setenv("SOUPFLEET_CACHE_GB", "plenty")
    with pytest.raises(UserError, match="plenty"):
        disk_folder()
