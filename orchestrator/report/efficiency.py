"""Use of the slots: busy time over the time in which there was work for them.

         due_since(B)
A |========|....waste....|======== B      waste = start of B - max(end of A, due_since of B)
"""

import bisect
from collections import defaultdict
from dataclasses import dataclass

from orchestrator.state.state import State

MERGE_SLOT = "merge"
"""Name of the merge actor, which is not a training slot: it holds no accelerator."""


@dataclass(frozen=True)
class Efficiency:
    """Slot-seconds of the training slots, over all drivers."""

    busy_s: float
    wanted_s: float
    """Busy, or free while the next order was already due."""
    whole_s: float
    """Slots times wall time."""

    @property
    def value(self) -> float | None:
        return self.busy_s / self.wanted_s if self.wanted_s > 0 else None

    @property
    def whole_wall(self) -> float | None:
        return min(1.0, self.busy_s / self.whole_s) if self.whole_s > 0 else None

    def as_json(self) -> dict[str, float | None]:
        return {
            "value": self.value,
            "busy_s": self.busy_s,
            "wanted_s": self.wanted_s,
            "whole_wall": self.whole_wall,
        }


def fleet_efficiency(state: State) -> Efficiency:
    intervals = [busy for busy in state.busy if not busy[0].startswith(MERGE_SLOT)]
    busy_s = sum(end - begin for _, begin, end in intervals)
    waste_s = sum(_waits(state, intervals))
    return Efficiency(busy_s, busy_s + waste_s, state.slots * wall_s(state))


def _waits(state: State, intervals: list[tuple[str, float, float]]) -> list[float]:
    """Seconds, per started order, that its slot was free while the order was due."""
    ends = defaultdict(list)
    for slot, _, end in sorted(intervals, key=lambda interval: interval[2]):
        ends[slot].append(end)
    waits = []
    for started in state.starts:
        slot = started.slot or ""
        due_since = state.due_since.get((started.order or "", started.attempt or 0))
        if due_since is None or slot.startswith(MERGE_SLOT):
            continue
        earlier = bisect.bisect_right(ends[slot], started.time)
        free_since = ends[slot][earlier - 1] if earlier else due_since
        waits.append(max(0.0, started.time - max(free_since, due_since)))
    return waits


def wall_s(state: State) -> float:
    """Seconds from the first driver's start to the end. Unfinished: to the newest event."""
    if state.finished is not None:
        return state.finished.wall_s
    if state.began_at is None or state.last_at is None:
        return 0.0
    return state.last_at - state.began_at
