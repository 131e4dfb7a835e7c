"""Patience with a store that fails: the driver's own reads and writes are tried again.

    work --OSError--> pause, growing --> work --> ... --> done, or StoreUnavailable
                        |
                        wait(pause, sentence): the fleet goes on, and the sentence is shown

What is tried again must be safe to repeat. A corrupt file is no trouble that passes.
"""

import math
import time
from collections.abc import Callable
from typing import TypeVar

from workers.errors import first_line
from workers.storage.store import CorruptFile, Store

T = TypeVar("T")

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 10.0
"""Short beside the validity of a lease, which is renewed by the same attempts."""

Wait = Callable[[float, str], None]
"""Passes a pause of so many seconds, and shows why."""


class StoreUnavailable(RuntimeError):
    """The store has failed for too long. The message says for how long, why, and what to do."""


class Patience:
    """Repeats work on a store for up to `hours`; not at all once `is_stopping`."""

    def __init__(
        self, store: Store, hours: float, wait: Wait, is_stopping: Callable[[], bool]
    ) -> None:
        self._store = store
        self._limit_s = hours * 3600
        self._wait = wait
        self._is_stopping = is_stopping

    def persist(self, work: Callable[[], T]) -> T:
        """The result of `work`.

        Raises:
            StoreUnavailable: it still fails after the time is over, or the driver is to stop.
        """
        since, failures = time.monotonic(), 0
        while True:
            try:
                return work()
            except CorruptFile:
                raise
            except OSError as error:
                failures += 1
                self._pause(error, time.monotonic() - since, failures)

    def _pause(self, error: OSError, waited_s: float, failures: int) -> None:
        if waited_s >= self._limit_s or self._is_stopping():
            raise StoreUnavailable(
                f"{self._store} has failed for {waited_s:.0f} s ({first_line(error)}); once it "
                "works again, the same command continues"
            ) from error
        hours = f"{self._limit_s / 3600:g} h"
        sentence = f"Waiting for {self._store} ({first_line(error)}), for up to {hours}."
        pause_s = min(FIRST_PAUSE_S * math.pow(2, min(failures - 1, 16)), MOST_PAUSE_S)
        self._wait(min(pause_s, max(0.0, self._limit_s - waited_s)), sentence)
