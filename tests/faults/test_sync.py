"""Deaths within sync rounds: the bytes stay, or the ledger says who was left out and why."""

from itertools import cycle
from pathlib import Path

import pytest

from orchestrator.experiment.sweep import expand
from tests.faults import tiny_experiment
from tests.faults.driver_processes import Life, Nursery
from workers.storage.store import Store

SYNC = ("train.epochs=3", "merge={mode: sync, method: greedy, optimizer_state: average}")

SECOND = f"{2 * 5:08d}"
"""Where the second segment ends: two epochs of five steps."""


def _life(folder: Path, kill_after: int | None = None) -> Life:
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    return Life(config, storage, overrides=SYNC, kill_after=kill_after)


def _store(folder: Path) -> Store:
    return Store(str(folder / "runs" / "tiny"))


def test_a_driver_killed_within_rounds_ends_with_the_same_bytes(
    nursery: Nursery, tmp_path: Path
) -> None:
    calm, hard = tmp_path / "calm", tmp_path / "hard"
    for folder in (calm, hard):
        folder.mkdir()
    assert nursery.live(_life(calm)).code == 0
    lengths = cycle([9, 4, 7, 3, 6])
    num_killed = 0
    while nursery.live(_life(hard, kill_after=next(lengths))).was_killed:
        num_killed += 1
        assert num_killed < 100, "the experiment does not get on"
    assert num_killed >= 5
    assert tiny_experiment.kinds(_store(hard)).count("round_closed") == 2
    assert tiny_experiment.served(_store(hard)) == tiny_experiment.served(_store(calm))


@pytest.mark.slow
def test_a_dead_member_and_a_frozen_one_end_in_the_ledger(tmp_path: Path) -> None:
    """In the second of three segments one worker dies and another stands still: the dead one is
    replaced in time, the frozen one misses the round and goes on from its weights."""
    told = (
        "sweep.seeds=3",
        "train.epochs=3",
        "fleet.heartbeat_s=60",
        "merge={mode: sync, method: mean, quorum: 2, deadline_s: 3}",
    )
    dead, frozen, _ = (run.id for run in expand(tiny_experiment.experiment(tmp_path, *told)))
    faults = [
        {"order": [f"train-{dead}-{SECOND}"], "touches": 1, "signal": "SIGKILL"},
        {"order": [f"train-{frozen}-{SECOND}"], "touches": 1, "signal": "SIGSTOP"},
    ]
    with tiny_experiment.Command(tmp_path, *told, faults=faults) as command:
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
