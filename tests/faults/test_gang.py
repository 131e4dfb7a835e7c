"""Two ranks in one placement group: when one of them dies, the whole gang is rebuilt."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults import tiny_experiment

GANG = ("fleet.gpus_per_run=2", "fleet.max_concurrent_runs=1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with tiny_experiment.Command(tmp_path_factory.mktemp("gang"), *GANG) as command:
        assert command.wait() == 0, command.output
        assert "failed" not in [event.kind for event in tiny_experiment.events(command.store)]
        return tiny_experiment.served(command.store)


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("fault_signal", "error", "heartbeat_s"), [("SIGKILL", "lost", 120), ("SIGSTOP", "hang", 20)]
)
def test_a_dead_or_frozen_rank_costs_one_attempt_and_changes_no_byte(
    rank: str,
    fault_signal: str,
    error: str,
    heartbeat_s: int,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
) -> None:
    fault: dict[str, Any] = {
        "order": ["train-"],
        "touches": 7,
        "signal": fault_signal,
        "rank": rank,
    }
    with tiny_experiment.Command(
        tmp_path, *GANG, f"fleet.heartbeat_s={heartbeat_s}", faults=[fault]
    ) as command:
        assert command.wait() == 0, command.output
        failed = [
            event for event in tiny_experiment.events(command.store) if event.kind == "failed"
        ]
        assert [event.error for event in failed] == [error], [e.message for e in failed]
        assert tiny_experiment.served(command.store) == uninterrupted
