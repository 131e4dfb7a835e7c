"""A driver is killed with SIGKILL after any of its ledger writes: the bytes stay the same."""

import contextlib
from itertools import cycle
from pathlib import Path

import psutil
import pytest

from tests.faults import tiny_experiment
from tests.faults.driver_processes import Life, Nursery, Undisturbed
from workers.storage.store import Store


def _life(folder: Path, fleet: str = "local", kill_after: int | None = None) -> Life:
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    return Life(config, storage, fleet=fleet, kill_after=kill_after)


def _store(folder: Path) -> Store:
    return Store(str(folder / "runs" / "tiny"))


def _workers(session: int) -> list[str]:
    """Ray's workers among the processes of a session."""
    found = []
    for process in tiny_experiment.session_of(session):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none such, too
            found += [title for title in process.cmdline() if "WorkerActor" in title]
    return found


def test_a_driver_killed_again_and_again_ends_with_the_same_bytes(
    nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One store, many lives. A life of five writes can train an epoch; shorter ones only begin."""
    lengths = cycle([1, 8, 3, 6, 2, 7, 5])
    num_killed = 0
    while nursery.live(_life(tmp_path, kill_after=next(lengths))).was_killed:
        num_killed += 1
        assert num_killed < 100, "the experiment does not get on"
    assert num_killed >= 10
    assert tiny_experiment.served(_store(tmp_path)) == undisturbed.served
    assert "failed" not in tiny_experiment.kinds(_store(tmp_path))


@pytest.mark.slow
def test_after_a_kill_at_any_ledger_write_one_more_driver_ends_with_the_same_bytes(
    nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    for write in range(1, undisturbed.writes + 1):
        folder = tmp_path / str(write)
        folder.mkdir()
        assert nursery.live(_life(folder, kill_after=write)).was_killed, write
        assert nursery.live(_life(folder)).code == 0, write
        assert tiny_experiment.served(_store(folder)) == undisturbed.served, write


@pytest.mark.slow
def test_a_ray_driver_killed_again_and_again_ends_with_the_same_bytes(
    nursery: Nursery, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """After its fifth write, its tenth, its fifteenth, and so on; its cluster goes with it."""
    lengths = cycle([5, 10, 15])
    num_killed = 0
    while (death := nursery.live(_life(tmp_path, "ray", next(lengths)))).was_killed:
        tiny_experiment.wait_for(lambda pid=death.pid: not _workers(pid), 30)
        tiny_experiment.kill_session(death.pid)  # Ray's own agents would take a minute to notice
        num_killed += 1
        assert num_killed < 40, "the experiment does not get on"
    assert death.code == 0
    assert num_killed >= 5
    assert tiny_experiment.served(_store(tmp_path)) == undisturbed.served
