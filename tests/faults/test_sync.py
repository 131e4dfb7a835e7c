"""Faults within sync rounds: the same bytes, or a ledger that names the members left out."""

from itertools import cycle
from pathlib import Path

import pytest

from orchestrator.experiment.sweep import expand
from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer
from workers.storage.store import Store

SYNC = ("train.epochs=3", "merge={mode: sync, method: greedy, optimizer_state: average}")

SECOND = f"{2 * 5:08d}"
"""Step at the end of the second segment: two epochs of five steps."""


def _driver_run(folder: Path, kill_after: int | None = None) -> DriverRun:
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    return DriverRun(config, storage, overrides=SYNC, kill_after=kill_after)


def _store(folder: Path) -> Store:
    return Store(str(folder / "runs" / "tiny"))


@pytest.mark.slow
def test_a_driver_killed_within_rounds_ends_with_the_same_bytes(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    smooth, killed = tmp_path / "smooth", tmp_path / "killed"
    for folder in (smooth, killed):
        folder.mkdir()
    assert fork_server.run(_driver_run(smooth)).code == 0
    lengths = cycle([16, 5, 11])
    num_killed = 0
    while fork_server.run(_driver_run(killed, kill_after=next(lengths))).was_killed:
        num_killed += 1
        assert num_killed < 100, "the experiment makes no progress"
    assert num_killed >= 3
    assert tiny_experiment.kinds(_store(killed)).count("round_closed") == 2
    assert tiny_experiment.served(_store(killed)) == tiny_experiment.served(_store(smooth))


@pytest.mark.slow
def test_a_dead_member_and_a_frozen_one_end_in_the_ledger(tmp_path: Path) -> None:
    """In the second of three segments one worker dies and another freezes. The dead one is replaced
    in time; the frozen one misses the round and continues from its merged weights."""
    overrides = (
        "sweep.seeds=3",
        "train.epochs=3",
        "fleet.heartbeat_s=60",
        "merge={mode: sync, method: mean, quorum: 2, deadline_s: 3}",
    )
    dead, frozen, _ = (run.id for run in expand(tiny_experiment.experiment(tmp_path, *overrides)))
    faults = [
        {"order": [f"train-{dead}-{SECOND}"], "touches": 1, "signal": "SIGKILL"},
        {"order": [f"train-{frozen}-{SECOND}"], "touches": 1, "signal": "SIGSTOP"},
    ]
    with tiny_experiment.Command(tmp_path, *overrides, faults=faults) as command:
        assert command.wait(300) == 0, command.output
        events = tiny_experiment.events(command.store)
    failed = {event.run: event.error for event in events if event.kind == "failed"}
    assert failed == {dead: "lost", frozen: "hang"}
    rounds = [event for event in events if event.kind == "merge_opened" and event.is_sync]
    assert [len(event.ingredients) for event in rounds] == [3, 2]
    (late,) = rounds[1].left_out
    assert late.candidate == frozen and "late" in late.reason
    (rejoined,) = [event for event in events if event.kind == "rejoined"]
    assert (rejoined.run, rejoined.merge) == (frozen, rounds[1].merge)
