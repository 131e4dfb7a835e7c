"""The driver's clock: Unix seconds that a change of the system's clock does not move."""

import time
from collections.abc import Callable


def steady_clock() -> Callable[[], float]:
    """A clock that reads the system's once, and counts on by the monotonic clock."""
    offset_s = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset_s
