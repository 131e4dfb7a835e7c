"""The state of an experiment: what its ledger says has happened.

    state = fold(events)          one reducer per kind of event, no clock, no I/O

What is true after an event depends on the state before it and the event alone, so a new driver that
replays the ledger has the state of the one that was killed. A state changes only in
`reducers.apply`; the driver owns the one of a running experiment, all others read it through a
`Moment`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workers.types import (
    Answer,
    Checkpoint,
    Checkpointed,
    Compared,
    Diversity,
    Evaluated,
    Failed,
    FileInfo,
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
    Stopped,
    TasteResult,
)


@dataclass(frozen=True)
class OpenOrder:
    """An order that a fleet holds."""

    what: str
    """Kind of the order."""
    attempt: int
    run: str | None
    due_since: float
    """Unix seconds since when it could have run."""
    started_at: float | None = None
    slot: str | None = None


@dataclass
class RunState:
    """What has happened to one run, or to the moving average of its weights, which has checkpoints
    alone. `checkpoints` holds only what the ledger adopted."""

    checkpoints: tuple[Checkpointed, ...] = ()
    """In order of step."""
    scored: tuple[Checkpointed, ...] = ()
    """Those of `checkpoints` that have a selection score."""
    by_name: dict[str, Checkpointed] = field(default_factory=dict)
    """`checkpoints` by name."""
    duplicates: tuple[Checkpoint, ...] = ()
    """Written again by a later attempt, with the same weights: never read, to be deleted."""
    curve: dict[int, Evaluated] = field(default_factory=dict)
    """By step."""
    evaluated_to: int = 0
    """Newest step of the curve."""
    farthest: int = 0
    """Newest step of any of its checkpoints so far, also of those that were found corrupt."""
    trained_to: int = 0
    reached_at: float | None = None
    """When it came to `trained_to`, Unix seconds."""
    ended_early: bool = False
    """Its patience ended at `trained_to`: it will not train further."""
    failed: str | None = None
    """Why the schedule gave up on it."""
    interruptions: int = 0

    @property
    def last(self) -> Checkpoint | None:
        return self.checkpoints[-1].checkpoint if self.checkpoints else None


EMPTY_RUN = RunState()
"""A run without events. Only read: reducers make a new one for a run's first event."""


@dataclass
class MergeState:
    """A merge: its candidates, what its recipe asked and was answered, and the soup."""

    opened: MergeOpened
    question: Question | None = None
    """Asked and not yet answered."""
    answers: tuple[Answer, ...] = ()
    tasted_mixes: tuple[str, ...] = ()
    """Keys of the mixes that the answers are about."""
    measurement_keys: tuple[str, ...] = ()
    """Keys of the measurements that answered it."""
    num_measurements: int = 0
    measured_samples: int = 0
    """Images forwarded for measurements, whichever merge asked first."""
    measured_s: float = 0.0
    """Seconds spent on measurements, likewise."""
    soup: Soup | None = None
    mixed_at: float | None = None
    abandoned: str | None = None
    """Why an observe round will have no soup. None: it is mixed, or goes on."""
    closed: RoundClosed | None = None
    """How a sync round ended."""
    diversity: Diversity | None = None
    """How far apart the members of a sync round were."""


@dataclass
class SlotUse:
    """Slot-seconds so far, without the merge actor's."""

    busy_s: float = 0.0
    """At work on orders."""
    wasted_s: float = 0.0
    """Free while the order that came next was already due."""
    free_since: dict[str, float] = field(default_factory=dict)
    """By slot: end of its last order, Unix seconds."""
    intervals: list[tuple[str, str, float, float]] = field(default_factory=list)
    """(slot, order, begin, end) of every order that ran to an end, Unix seconds."""


@dataclass
class State:
    last_seq: int = -1
    began_at: float | None = None
    """When the first driver opened the experiment, Unix seconds."""
    opened_at: float | None = None
    """When the present driver did."""
    last_at: float | None = None
    """Time of the newest event after `opened`, Unix seconds."""
    earlier_s: float = 0.0
    """Seconds that drivers before the present one have run."""
    slots: int = 1
    preflight: PreflightResult | None = None
    checkpoint_s: float | None = None
    """Seconds that the slowest checkpoint took to be written. None: unknown."""
    bases: dict[str, Checkpoint] = field(default_factory=dict)
    runs: dict[str, RunState] = field(default_factory=dict)
    open: dict[str, OpenOrder] = field(default_factory=dict)
    """Orders that a fleet holds."""
    attempts: dict[str, int] = field(default_factory=dict)
    """By run for train orders, else by order: the attempt whose events count."""
    unresolved_failures: dict[str, Failed] = field(default_factory=dict)
    """By order: failed, and nothing is decided yet."""
    failures: dict[str, tuple[Failed, ...]] = field(default_factory=dict)
    """By order, all of them."""
    num_forgiven: dict[str, int] = field(default_factory=dict)
    """By order: how many of its failures no longer count. Its run has made progress since, or a new
    driver has begun, or it was given up and revived."""
    backoff: dict[str, RetryDecided] = field(default_factory=dict)
    micro_batch: dict[str, int] = field(default_factory=dict)
    """By run: a size that fits in memory, for all its further segments."""
    gave_up: dict[str, str] = field(default_factory=dict)
    """Order -> reason."""
    merges: dict[str, MergeState] = field(default_factory=dict)
    unmixed: dict[str, MergeState] = field(default_factory=dict)
    """The merges that have no soup yet."""
    finals: dict[str, MergeState] = field(default_factory=dict)
    """The final merges, those of before an extension included."""
    rejoined: dict[str, Rejoined] = field(default_factory=dict)
    """By run: the last time it came too late for a sync round."""
    tastes: dict[tuple[str, str], TasteResult] = field(default_factory=dict)
    """By (cohort, mix key)."""
    taste_cost: dict[tuple[str, str], float] = field(default_factory=dict)
    """Seconds spent, by (cohort, mix key)."""
    measured: dict[tuple[str, str], Measured] = field(default_factory=dict)
    """By (cohort, key of the question), until a merge that asked for it is mixed."""
    soups: dict[str, Checkpoint] = field(default_factory=dict)
    blend_seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    """Name of a checkpoint, or of a mix on a recipe's path -> split -> score."""
    compared: dict[str, Compared] = field(default_factory=dict)
    analysed: str | None = None
    """Key of what `analysis.json` is about. None: there is none."""
    served: Served | None = None
    retired: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)
    """Ids of checkpoints whose bytes are not what was written."""
    files: dict[str, dict[str, FileInfo]] = field(default_factory=dict)
    """Files outside of checkpoints, as events announced them, by folder and path."""
    damaged: set[str] = field(default_factory=set)
    """Paths of files that are to be made again: splits, bases, predictions."""
    segments: dict[str, set[str]] = field(default_factory=dict)
    """By run: the train orders it was given."""
    has_started: bool = False
    """Whether any order ever started."""
    training_since: float | None = None
    """When the first run started under the present driver, Unix seconds."""
    slot_use: SlotUse = field(default_factory=SlotUse)
    finish_reason: str | None = None
    original: dict[str, Any] | None = None
    """Identity of the experiment before its first extension. None: it was not extended."""
    stopped: Stopped | None = None
    finished: Finished | None = None

    def run(self, run_id: str) -> RunState:
        return self.runs.get(run_id, EMPTY_RUN)

    def is_blocked(self, order: str) -> bool:
        """In flight, failed and undecided, waiting for its backoff, or given up."""
        return (
            order in self.open
            or order in self.backoff
            or order in self.unresolved_failures
            or order in self.gave_up
        )

    def counted_failures(self, order: str) -> tuple[Failed, ...]:
        """Failures of an order that count against its limits, oldest first."""
        return self.failures.get(order, ())[self.num_forgiven.get(order, 0) :]

    def forgive(self, order: str) -> None:
        """Let the failures of an order so far no longer count, unless one is yet to be decided."""
        if order in self.failures and order not in self.unresolved_failures:
            self.num_forgiven[order] = len(self.failures[order])

    # Checkpoints by name; retention keeps whatever an open merge names.

    def checkpoint_event(self, name: str) -> Checkpointed:
        """The event that added a run's checkpoint. Raises KeyError for one that is not known."""
        event = self.run(name.partition("/")[0]).by_name.get(name)
        if event is None:
            raise KeyError(f"no checkpoint {name} in the ledger")
        return event

    def is_known_checkpoint(self, name: str) -> bool:
        """Whether the ledger knows a usable checkpoint of that run and step."""
        return name in self.run(name.partition("/")[0]).by_name

    def checkpoint_named(self, name: str) -> Checkpoint:
        """The checkpoint of a run, a base or a soup, with the attempt that wrote it."""
        if name.startswith("base/"):
            return self.bases[name]
        if name.startswith("soup/"):
            return self.soups[name]
        return self.checkpoint_event(name).checkpoint

    def checkpoints_named(self, names: Iterable[str]) -> tuple[Checkpoint, ...]:
        return tuple(self.checkpoint_named(name) for name in names)


def attempt_key(order: str, run: str | None) -> str:
    """Attempts are counted per run for training, else per order."""
    return run or order
