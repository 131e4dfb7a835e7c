"""Signals: how a person or a batch system stops a driver, and how everything ends at once.

SIGINT, SIGTERM, SIGUSR1    the loop ends at its next turn; training gets its grace period
a second SIGINT             everything ends now
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from orchestrator.driver.driver import Driver

STOPPED = 4
"""Exit code of a command that was stopped; the same command goes on."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

CLOSING_S = 8.0
"""For giving a cluster back, after the grace period of the training."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While no driver is at work, a signal ends the process, and all is given back on the way."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED)

    before = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    try:
        yield
    except SystemExit:  # or that of Ray, which has a handler of its own while it starts
        print("soupfleet: stopped; the same command goes on", file=sys.stderr, flush=True)
        kill_everything()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_signals_handled(driver: Driver) -> Iterator[None]:
    """SIGINT, SIGTERM, SIGUSR1: the loop ends at its next turn. A second SIGINT: all ends at once,
    and so it does when the grace period is over and something still hangs, closing included."""
    patience_s = driver.program.experiment.fleet.grace_s + CLOSING_S

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and driver.stop_reason is not None:
            kill_everything()
        driver.stop_reason = f"{signal.Signals(number).name} received"
        driver.fleet.interrupt(driver.stop_reason)
        signal.setitimer(signal.ITIMER_REAL, patience_s)

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    signal.signal(signal.SIGALRM, lambda *_: kill_everything())
    yield
    if driver.stop_reason is None:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_everything() -> None:
    """No grace: every child process, then this one. The ledger is consistent at all times."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(STOPPED)
