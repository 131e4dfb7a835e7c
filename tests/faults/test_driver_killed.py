"""A driver is killed with SIGKILL after any of its ledger writes: the bytes stay the same."""

import contextlib
from itertools import cycle
from pathlib import Path

import psutil
import pytest

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer, UninterruptedRun
from workers.storage.store import Store


def _driver_run(folder: Path, fleet: str = "local", kill_after: int | None = None) -> DriverRun:
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    return DriverRun(config, storage, fleet=fleet, kill_after=kill_after)


def _store(folder: Path) -> Store:
    return Store(str(folder / "runs" / "tiny"))


def _workers(session: int) -> list[str]:
    """Ray's workers among the processes of a session."""
    titles = []
    for process in tiny_experiment.session_of(session):
        with contextlib.suppress(psutil.NoSuchProcess):  # also raised for a zombie
            titles += [title for title in process.cmdline() if "WorkerActor" in title]
    return titles


def test_a_driver_killed_again_and_again_ends_with_the_same_bytes(
    fork_server: ForkServer, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    """One store, many drivers. Five writes suffice to train an epoch; fewer only to start one."""
    lengths = cycle([1, 12, 4, 9, 6])
    num_killed = 0
    while fork_server.run(_driver_run(tmp_path, kill_after=next(lengths))).was_killed:
        num_killed += 1
        assert num_killed < 100, "the experiment makes no progress"
    assert num_killed >= 6
    assert tiny_experiment.served(_store(tmp_path)) == uninterrupted.served
    assert "failed" not in tiny_experiment.kinds(_store(tmp_path))


@pytest.mark.slow
def test_after_a_kill_at_any_ledger_write_one_more_driver_ends_with_the_same_bytes(
    fork_server: ForkServer, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    for write in range(1, uninterrupted.writes + 1):
        folder = tmp_path / str(write)
        folder.mkdir()
        assert fork_server.run(_driver_run(folder, kill_after=write)).was_killed, write
        assert fork_server.run(_driver_run(folder)).code == 0, write
        assert tiny_experiment.served(_store(folder)) == uninterrupted.served, write


@pytest.mark.slow
def test_a_ray_driver_killed_again_and_again_ends_with_the_same_bytes(
    fork_server: ForkServer, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    """After its fifth, tenth and fifteenth write, repeatedly; every time its cluster ends too."""
    lengths = cycle([5, 10, 15])
    num_killed = 0
    while (status := fork_server.run(_driver_run(tmp_path, "ray", next(lengths)))).was_killed:
        tiny_experiment.wait_for(lambda pid=status.pid: not _workers(pid), 30)
        tiny_experiment.kill_session(status.pid)  # Ray's own agents would take a minute to end
        num_killed += 1
        assert num_killed < 40, "the experiment makes no progress"
    assert status.code == 0
    assert num_killed >= 5
    assert tiny_experiment.served(_store(tmp_path)) == uninterrupted.served
