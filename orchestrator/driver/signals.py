"""Signals: how a person or a batch system stops a driver.

SIGINT, SIGTERM, SIGUSR1    the loop ends at its next turn; training gets its grace period
a second SIGINT             all processes end at once
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from orchestrator.driver.driver import Driver

STOPPED = 4
"""Exit code of a command that was stopped; the same command continues."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

CLOSING_S = 8.0
"""Time to release a cluster after the grace period of training."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While no driver is running, a stop signal ends the process; exit handlers still run."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED)

    before = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    try:
        yield
    except SystemExit:  # ours, or that of Ray's own handler while it starts
        print("soupfleet: stopped; the same command continues", file=sys.stderr, flush=True)
        kill_everything()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_signals_handled(driver: Driver) -> Iterator[None]:
    """While the driver is running, a stop signal ends its loop at the next turn.

    All processes end at once at a second SIGINT, or if stopping takes longer than the grace period
    and CLOSING_S.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and driver.stop_reason is not None:
            kill_everything()
        driver.stop_reason = f"{signal.Signals(number).name} received"
        driver.fleet.interrupt(driver.stop_reason)
        signal.setitimer(signal.ITIMER_REAL, driver.grace_s + CLOSING_S)

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    signal.signal(signal.SIGALRM, lambda *_: kill_everything())
    try:
        yield
    finally:
        if driver.stop_reason is None:
            for number, handler in before.items():
                signal.signal(number, handler)


def kill_everything() -> None:
    """Kill all child processes, then this one. The ledger is consistent at any time."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(STOPPED)
