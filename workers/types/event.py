"""What events have in common."""

import time

from pydantic import Field

from workers.types.nouns import Value


class Event(Value):
    """A fact. `seq` is given by the ledger; order, attempt and slot by the fleet."""

    seq: int = -1
    time: float = Field(default_factory=time.time)
    """Unix seconds where it happened."""
    order: str | None = None
    run: str | None = None
    attempt: int | None = None
    slot: str | None = None
