"""The state of an experiment: a pure fold of its ledger.

    state = fold(events)          one function per kind of event, no clock, no I/O

What is true after an event depends on the state before it and the event alone, so a new driver that
replays the ledger stands exactly where the old one fell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from workers.types import (
    Answer,
    Checkpoint,
    Checkpointed,
    Compared,
    Diversity,
    Evaluated,
    Failed,
    Finished,
    Measured,
    MergeOpened,
    PreflightResult,
    Question,
    Rejoined,
    RetryDecided,
    RoundClosed,
    Score,
    Served,
    Soup,
    Started,
    Stopped,
    TasteResult,
)


@dataclass(frozen=True)
class OpenOrder:
    """An order that a fleet holds."""

    what: str
    attempt: int
    run: str | None
    ordered_at: float
    started_at: float | None = None
    slot: str | None = None


@dataclass(frozen=True)
class RunState:
    """What is known of one run, or of the moving average of its weights, which has checkpoints
    alone. `checkpoints` counts only what the ledger adopted."""

    checkpoints: tuple[Checkpointed, ...] = ()
    """In order of step."""
    duplicates: tuple[Checkpoint, ...] = ()
    """Made again by a later attempt, with the same weights: never looked at, to be deleted."""
    curve: Mapping[int, Evaluated] = field(default_factory=dict)
    """By step."""
    trained_to: int = 0
    reached_at: float | None = None
    """When it came to `trained_to`, Unix seconds."""
    ended_early: bool = False
    """Its patience was over at `trained_to`: it will never go beyond."""
    failed: str | None = None
    """Why the schedule gave up on it."""
    interruptions: int = 0

    @property
    def last(self) -> Checkpoint | None:
        return self.checkpoints[-1].checkpoint if self.checkpoints else None

    @cached_property
    def scored(self) -> tuple[Checkpointed, ...]:
        return tuple(event for event in self.checkpoints if event.score is not None)

    @cached_property
    def evaluated_to(self) -> int:
        """Newest step of the curve."""
        return max(self.curve, default=0)

    @cached_property
    def known(self) -> dict[Any, Any]:
        """What pure functions found out about this very value; it goes when the value goes."""
        return {}


EMPTY_RUN = RunState()
"""Of a run that nothing has happened to."""


@dataclass(frozen=True)
class MergeState:
    """A merge: who takes part, what its recipe asked and was answered, what came out."""

    opened: MergeOpened
    question: Question | None = None
    """Asked and not yet answered."""
    answers: tuple[Answer, ...] = ()
    tasted_mixes: tuple[str, ...] = ()
    """Keys of the mixes that the answers speak of."""
    measurement_keys: tuple[str, ...] = ()
    """Keys of the measurements that it was answered with."""
    num_measurements: int = 0
    """How many those were."""
    measured_samples: int = 0
    """Images forwarded for them, and the seconds spent: what the recipe needs, whoever paid."""
    measured_s: float = 0.0
    soup: Soup | None = None
    mixed_at: float | None = None
    failed: str | None = None
    closed: RoundClosed | None = None
    """How a sync round ended."""
    diversity: Diversity | None = None
    """Of a sync round's members."""


@dataclass(frozen=True)
class State:
    last_seq: int = -1
    began_at: float | None = None
    """When the first driver opened the experiment, Unix seconds."""
    opened_at: float | None = None
    """When the present one did."""
    last_at: float | None = None
    """The latest time of any event."""
    slots: int = 1
    facts: PreflightResult | None = None
    bases: Mapping[str, Checkpoint] = field(default_factory=dict)
    runs: Mapping[str, RunState] = field(default_factory=dict)
    open: Mapping[str, OpenOrder] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    """By run for train orders, else by order: the attempt whose word counts."""
    unresolved_failures: Mapping[str, Failed] = field(default_factory=dict)
    failures: Mapping[str, tuple[Failed, ...]] = field(default_factory=dict)
    backoff: Mapping[str, RetryDecided] = field(default_factory=dict)
    micro_batch: Mapping[str, int] = field(default_factory=dict)
    """By run: what was too much for one segment of a run would be for the next."""
    gave_up: Mapping[str, str] = field(default_factory=dict)
    merges: Mapping[str, MergeState] = field(default_factory=dict)
    rejoined: Mapping[str, Rejoined] = field(default_factory=dict)
    """By run: the last time it came too late for a sync round."""
    tastes: Mapping[tuple[str, str], TasteResult] = field(default_factory=dict)
    """By (cohort, mix key)."""
    taste_cost: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Seconds spent, likewise."""
    measured: Mapping[tuple[str, str], Measured] = field(default_factory=dict)
    """By (cohort, key of the question), until a merge that asked for it is mixed."""
    soups: Mapping[str, Checkpoint] = field(default_factory=dict)
    blend_seconds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """Name of a checkpoint, or of a mix on a recipe's way -> split -> score."""
    compared: Mapping[str, Compared] = field(default_factory=dict)
    analysed: str | None = None
    """Key of what `analysis.json` is about; None while there is none."""
    served: Served | None = None
    retired: frozenset[str] = frozenset()
    corrupt: frozenset[str] = frozenset()
    """Ids of checkpoints whose bytes are not what was written."""
    starts: tuple[Started, ...] = ()
    due_since: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """(order, attempt) -> Unix seconds since when it could have run."""
    busy: tuple[tuple[str, float, float], ...] = ()
    """(slot, begin, end) of every order that ran to an end, Unix seconds."""
    finish_reason: str | None = None
    stopped: Stopped | None = None
    finished: Finished | None = None

    def run(self, run_id: str) -> RunState:
        return self.runs.get(run_id, EMPTY_RUN)

    def is_blocked(self, order: str) -> bool:
        """In flight, to be decided, waiting for its backoff, or given up: not to be ordered."""
        return (
            order in self.open
            or order in self.backoff
            or order in self.unresolved_failures
            or order in self.gave_up
        )

    def attempt_key(self, order: str, run: str | None) -> str:
        return run or order
