"""Stop signals: the ledger replays, no process is left, and the same command continues."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer, UninterruptedRun
from workers.storage.store import Store

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

CLOSING_S = 15.0
"""Time for a process to end on a busy machine, after a grace period of two seconds."""


def test_the_command_stops_within_seconds_and_names_the_next_command(tmp_path: Path) -> None:
    with tiny_experiment.Command(tmp_path, "--fleet", "local") as command:
        command.wait_for("evaluated")
        command.signal(signal.SIGINT)
        began = time.monotonic()
        assert command.wait() == 4, command.output
        assert time.monotonic() - began < CLOSING_S
        assert "The same command" in command.output
        assert tiny_experiment.session_of(command.process.pid) == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_driver_continues_to_the_same_bytes(
    number: signal.Signals, fork_server: ForkServer, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    pid = fork_server.start(_driver_run(tmp_path))
    tiny_experiment.wait_for(lambda: "evaluated" in _kinds(tmp_path))
    os.kill(pid, number)
    assert fork_server.wait().code == 4
    kinds = [event.kind for event in tiny_experiment.events(_store(tmp_path))]
    assert "stopped" in kinds and "failed" not in kinds
    assert fork_server.run(_driver_run(tmp_path)).code == 0
    assert tiny_experiment.served(_store(tmp_path)) == uninterrupted.served


def test_training_stops_within_an_epoch_and_continues_from_there(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    pid = fork_server.start(_driver_run(tmp_path, *tiny_experiment.LONG))
    tiny_experiment.wait_for(lambda: _kinds(tmp_path).count("evaluated") > 1)
    os.kill(pid, signal.SIGTERM)
    assert fork_server.wait().code == 4
    events = tiny_experiment.events(_store(tmp_path))
    assert "interrupted" in [event.kind for event in events]
    stopped_at = [e.checkpoint.step for e in events if e.kind == "checkpoint"][-1]
    assert fork_server.run(_driver_run(tmp_path, *tiny_experiment.LONG, kill_after=5)).was_killed
    later = tiny_experiment.events(_store(tmp_path))[len(events) :]
    evaluated = [e.step for e in (*events, *later) if e.kind == "evaluated"]
    assert stopped_at > evaluated[1]
    assert evaluated == sorted(set(evaluated)), "an epoch was trained twice"


def test_a_second_interrupt_ends_everything_at_once(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    pid = fork_server.start(_driver_run(tmp_path, *tiny_experiment.LONG, "fleet.grace_s=60"))
    tiny_experiment.wait_for(lambda: "evaluated" in _kinds(tmp_path))
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGINT)
    began = time.monotonic()
    assert fork_server.wait().code == 4
    assert time.monotonic() - began < 5
    assert tiny_experiment.events(_store(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP)
def test_a_ray_driver_stops_within_seconds_and_another_one_ends_with_the_same_bytes(
    number: signal.Signals, fork_server: ForkServer, uninterrupted: UninterruptedRun, tmp_path: Path
) -> None:
    with tiny_experiment.Command(tmp_path) as command:
        command.wait_for("evaluated")
        command.signal(number)
        began = time.monotonic()
        tiny_experiment.wait_for(lambda: "stopped" in _kinds(tmp_path), 3)
        assert command.wait() == 4, command.output
        assert time.monotonic() - began < CLOSING_S
        tiny_experiment.wait_for(lambda: not tiny_experiment.session_of(command.process.pid), 5)
    assert fork_server.run(_driver_run(tmp_path)).code == 0
    assert tiny_experiment.served(command.store) == uninterrupted.served


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP)
def test_a_driver_stopped_while_ray_starts_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    with tiny_experiment.Command(tmp_path) as command:
        tiny_experiment.wait_for(lambda: command.store.exists("driver.json"))
        time.sleep(4)
        command.signal(number)
        assert command.wait() == 4, command.output
        tiny_experiment.wait_for(lambda: not tiny_experiment.session_of(command.process.pid), 10)
        assert not command.store.exists("driver.json")


@pytest.mark.slow
def test_a_second_interrupt_ends_a_ray_fleet_at_once(tmp_path: Path) -> None:
    with tiny_experiment.Command(tmp_path, "fleet.grace_s=60", *tiny_experiment.LONG) as command:
        command.wait_for("evaluated")
        command.signal(signal.SIGINT)
        time.sleep(0.2)
        command.signal(signal.SIGINT)
        began = time.monotonic()
        assert command.wait() == 4
        assert time.monotonic() - began < 5
        tiny_experiment.wait_for(lambda: not tiny_experiment.session_of(command.process.pid), 10)
        assert tiny_experiment.events(command.store)


def _driver_run(folder: Path, *overrides: str, kill_after: int | None = None) -> DriverRun:
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    return DriverRun(config, storage, overrides=overrides, kill_after=kill_after)


def _kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in tiny_experiment.peek(folder / "runs" / "tiny")]


def _store(folder: Path) -> Store:
    return Store(str(folder / "runs" / "tiny"))
