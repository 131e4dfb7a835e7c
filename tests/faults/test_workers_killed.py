"""Workers of a Ray fleet are killed or freeze: the ledger explains it, and the bytes stay the same.

Nor does the number of slots or the kind of fleet change a byte.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.faults import tiny_experiment
from tests.faults.driver_processes import UninterruptedRun

KILLED: dict[str, dict[str, Any]] = {
    "training": {"order": ["train-"], "touches": 7, "signal": "SIGKILL"},
    "taste": {"order": ["taste-"], "touches": 1, "signal": "SIGKILL"},
    "merge": {"order": ["merge-greedy"], "touches": 0, "signal": "SIGKILL"},
    "upload": {"write": "model.safetensors", "signal": "SIGKILL"},
}


def _explained(store: Any, error: str) -> list[str]:
    """Kinds of orders that failed with `error`; checks that each was retried by a decision."""
    events = tiny_experiment.events(store)
    failed = [event for event in events if event.kind == "failed"]
    assert all(event.error == error for event in failed), [event.message for event in failed]
    for event in failed:
        later = [e.kind for e in events if e.order == event.order and e.seq > event.seq]
        assert later[:3] == ["retry_decided", "backoff_over", "ordered"], (event.order, later)
    return [str(event.order).partition("-")[0] for event in failed]


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_a_ray_fleet_of_any_width_serves_the_bytes_of_a_local_one(
    slots: int, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    with tiny_experiment.Command(tmp_path, f"fleet.max_concurrent_runs={slots}") as command:
        assert command.wait() == 0, command.output
        assert tiny_experiment.served(command.store) == uninterrupted.served


@pytest.mark.slow
def test_workers_killed_in_training_upload_taste_and_merge_change_no_byte(
    uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    with tiny_experiment.Command(
        tmp_path,
        "fleet.max_concurrent_runs=2",
        "merge.mode=off",
        faults=list(KILLED.values()),
    ) as command:
        assert command.wait() == 0, command.output
        assert len(list(tmp_path.glob("fault-*"))) == len(KILLED)
        assert set(_explained(command.store, "lost")) == {"merge", "taste", "train"}
        assert tiny_experiment.served(command.store) == uninterrupted.served


@pytest.mark.slow
@pytest.mark.parametrize("what", KILLED)
def test_a_killed_worker_costs_one_attempt(
    what: str, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    # Without anytime soups, whose tastes would also answer the final recipes.
    with tiny_experiment.Command(
        tmp_path, "fleet.max_concurrent_runs=1", "merge.mode=off", faults=[KILLED[what]]
    ) as command:
        assert command.wait() == 0, command.output
        assert len(_explained(command.store, "lost")) == 1
        assert tiny_experiment.served(command.store) == uninterrupted.served


@pytest.mark.slow
def test_a_frozen_worker_is_noticed_and_replaced(
    uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    frozen = {"order": ["train-"], "touches": 7, "signal": "SIGSTOP"}
    with tiny_experiment.Command(
        tmp_path, "fleet.max_concurrent_runs=1", "fleet.heartbeat_s=15", faults=[frozen]
    ) as command:
        assert command.wait() == 0, command.output
        assert _explained(command.store, "hang") == ["train"]
        assert tiny_experiment.served(command.store) == uninterrupted.served
