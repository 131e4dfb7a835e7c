"""Use of the slots: busy time over the time in which there was work for them.

         due_since(B)
A |========|....waste....|======== B      waste = start of B - max(end of A, due_since of B)
"""

from dataclasses import dataclass

from orchestrator.state.state import State


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
    use = state.slot_use
    return Efficiency(use.busy_s, use.busy_s + use.wasted_s, state.slots * wall_s(state))


def wall_s(state: State) -> float:
    """Seconds that drivers have run, all of them together, up to the newest event."""
    if state.finished is not None:
        return state.finished.wall_s
    if state.opened_at is None or state.last_at is None:
        return 0.0
    return state.earlier_s + max(0.0, state.last_at - state.opened_at)
