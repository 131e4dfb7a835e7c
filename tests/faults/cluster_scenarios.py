"""Scenarios of a soak on Ray: workers, ranks, the merge actor, Ray's own processes and drivers."""

import contextlib
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.faults import tiny_experiment
from tests.faults.soak import Outcome, Soak

MAX_LIVES = 12
"""Commands for one experiment: every one makes progress, so more means that it is stuck."""

END_S = 300.0
"""Seconds for a command to end: a frozen worker is noticed after `HEARTBEAT`, on a busy machine."""

HEARTBEAT = "fleet.heartbeat_s=20"

GANG = ("fleet.gpus_per_run=2", "fleet.max_concurrent_runs=1")

VICTIMS = {
    "worker": ("ray::WorkerActor", signal.SIGKILL),
    "frozen worker": ("ray::WorkerActor", signal.SIGSTOP),
    "raylet": ("raylet", signal.SIGKILL),
    "gcs": ("gcs_server", signal.SIGKILL),
    "driver": ("-m orchestrator", signal.SIGKILL),
}


def strike_fleet(soak: Soak, rng: random.Random) -> Outcome:
    """Processes of a fleet of single workers and of its cluster are killed or frozen."""
    return _strike(soak, rng)


def strike_gang(soak: Soak, rng: random.Random) -> Outcome:
    """Ranks of a gang of two, and processes of its cluster, are killed or frozen."""
    return _strike(soak, rng, *GANG)


def _strike(soak: Soak, rng: random.Random, *overrides: str) -> Outcome:
    folder, strikes, code = soak.folder(), 0, -1
    for _ in range(MAX_LIVES):
        with tiny_experiment.Command(folder, HEARTBEAT, *overrides) as command:
            strikes += _strike_now_and_then(command, rng)
            code = _exit_code(command)
        if code == 0:
            break
    return soak.judge(folder, code, strikes, served=soak.served_by(*overrides))


def _strike_now_and_then(command: tiny_experiment.Command, rng: random.Random) -> int:
    """The number of strikes, at most two in the life of a driver."""
    strikes = 0
    for _ in range(rng.randint(1, 2)):
        wanted = _num_events(command) + rng.randint(3, 15)
        while command.process.poll() is None and _num_events(command) < wanted:
            time.sleep(0.1)
        strikes += _strike_one(command, rng)
    return strikes


def _num_events(command: tiny_experiment.Command) -> int:
    return len(tiny_experiment.peek(Path(command.uri)))


def _strike_one(command: tiny_experiment.Command, rng: random.Random) -> int:
    """Kill or freeze one process; 0 if there is none."""
    title, number = VICTIMS[rng.choice(list(VICTIMS))]
    victims = [
        process
        for process in tiny_experiment.session_of(command.process.pid)
        if title in _title(process)
    ]
    if not victims:
        return 0
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(victims).send_signal(number)
    return 1


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return f"{process.name()} {' '.join(process.cmdline()[:4])}"
    return ""


def _exit_code(command: tiny_experiment.Command) -> int:
    try:
        return command.wait(END_S)
    except subprocess.TimeoutExpired:
        return -1
