"""Events: results of orders and decisions of the driver. Each is one line of the ledger."""

import time
from typing import Any, Literal

from pydantic import Field

from workers.types.preflight import PreflightResult
from workers.types.values import Checkpoint, FileInfo, FrozenModel, Metric, Score


class Event(FrozenModel):
    """Something that happened. The ledger sets `seq`; the fleet sets order, attempt and slot."""

    seq: int = -1
    time: float = Field(default_factory=time.time)
    """Unix seconds, by the clock of the machine where it happened."""
    heard_at: float | None = None
    """Unix seconds when the driver took it, by the driver's clock. None: an old ledger."""
    order: str | None = None
    run: str | None = None
    attempt: int | None = None
    slot: str | None = None

    @property
    def driver_time(self) -> float:
        """Unix seconds by the driver's clock, on which decisions and durations rest."""
        return self.time if self.heard_at is None else self.heard_at


class FilesEvent(Event):
    """An event that announces files outside of checkpoints, which have manifests of their own."""

    files: dict[str, FileInfo] = {}
    """Files by path in the store. Empty: none, or an old ledger."""


class Opened(Event):
    """A driver started. Orders of an earlier driver are open again."""

    kind: Literal["opened"] = "opened"
    driver: str
    """host:pid"""
    fleet: str
    """ray or local"""
    slots: int


class Ordered(Event):
    kind: Literal["ordered"] = "ordered"
    what: str
    """Kind of the order."""
    due_since: float
    """Unix seconds from which the order could have run."""


class Started(Event):
    kind: Literal["started"] = "started"
    warm: bool
    """Whether the slot had a model of this shape in memory."""
    gap_s: float | None
    """Seconds from the last step on this slot to the first batch. None: no step before."""


class Preflighted(FilesEvent):
    kind: Literal["preflighted"] = "preflighted"
    facts: PreflightResult


class BaseReady(Event):
    kind: Literal["base_ready"] = "base_ready"
    checkpoint: Checkpoint


class Evaluated(Event):
    """A point of a run's learning curve, at the end of an epoch."""

    kind: Literal["evaluated"] = "evaluated"
    step: int
    epoch: int
    loss: float | None
    """Mean training loss of the epoch, nats. None: not finite."""
    lr: float
    images_per_s: float
    score: Score
    """Score on the selection split."""
    ema: Score | None = None
    """Score of the moving average on the selection split. None: the run keeps no average."""
    held_out: Score | None = None
    """Score on the images that the run's fold holds out. None: the run has no fold."""


class Checkpointed(FilesEvent):
    """A complete checkpoint: its manifest is in the store."""

    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint: Checkpoint
    score: Score | None
    """Score on the selection split. None: not the end of an epoch."""
    write_s: float | None = None
    """Seconds that the slowest checkpoint of its order took to be written. None: unknown."""


class Trained(Event):
    """The run reached the step of its order. All its checkpoints are complete."""

    kind: Literal["trained"] = "trained"
    step: int
    busy_s: float
    early: bool = False
    """Whether the run's patience is over, so that it never trains beyond this step."""


class Interrupted(Event):
    """The order ended before its step, after a checkpoint in the grace period."""

    kind: Literal["interrupted"] = "interrupted"
    reason: str


class Blended(Event):
    kind: Literal["blended"] = "blended"
    checkpoint: Checkpoint
    busy_s: float


class Scored(FilesEvent):
    kind: Literal["scored"] = "scored"
    checkpoint: str
    """Name of the checkpoint, or `ScoreMixOrder.name`."""
    scores: dict[str, Score]
    busy_s: float


class Delta(FrozenModel):
    """A paired difference to the best single model, with its 95 % bootstrap interval."""

    metric: Metric
    delta: float
    ci95: tuple[float, float]
    p: float | None = None
    """p-value of the exact two-sided McNemar test of equal top-1. None: another metric, or an old
    ledger."""


class EnsembleResult(FrozenModel):
    id: str
    kind: str
    members: tuple[str, ...]
    scores: dict[str, Score]
    """Scores by split, without the split that the ensemble was fitted on."""
    vs_best_single: dict[str, Delta]
    groups: tuple[tuple[str, ...], ...] = ()
    """Groups of members whose averaged logits are the inputs of a stacked classifier, in order."""
    fitted_on: str | None = None
    """Data that a stacked classifier was fitted on: `out of fold`, or the selection split."""


class Compared(FilesEvent):
    kind: Literal["compared"] = "compared"
    key: str
    """`CompareOrder.key`."""
    soups: dict[str, dict[str, Delta]]
    """Soup name -> split -> difference."""
    ensembles: tuple[EnsembleResult, ...]


class Analysed(FilesEvent):
    """`analysis.json` is in the store."""

    kind: Literal["analysed"] = "analysed"
    key: str
    """`AnalyseOrder.key`."""
    busy_s: float


class Served(Event):
    kind: Literal["served"] = "served"
    soup: str | None
    """Name of the soup. None: there is nothing to serve."""
    files: dict[str, str] = {}
    """sha256 by name of the files in `soup/`, which are copies. Empty: an old ledger."""


class ServedDamaged(Event):
    """A file of `soup/` is not what was served. The soup is served again."""

    kind: Literal["served_damaged"] = "served_damaged"
    reason: str


class Retired(Event):
    kind: Literal["retired"] = "retired"
    checkpoints: tuple[str, ...]
    """Ids of deleted checkpoints."""


ErrorClass = Literal[
    "refused",  # a worker found a mistake of the user: never retried
    "lost",  # a worker, rank or node died
    "preempted",  # the node is being drained
    "hang",  # no progress within fleet.heartbeat_s
    "oom",  # out of (accelerator) memory
    "storage",  # the store did not answer
    "corrupt",  # a committed file does not have the bytes of its manifest
    "diverged",  # weights or loss are not finite
    "error",  # an exception of this program or of the user's code
]


class Failed(Event):
    """An attempt at an order ended without a result. The schedule decides about a retry."""

    kind: Literal["failed"] = "failed"
    error: ErrorClass
    message: str
    """One sentence."""
    traceback: str = ""
    checkpoint: str | None = None
    """Id of the corrupt checkpoint. None: another kind of error."""
    path: str | None = None
    """Path of another corrupt file, which is made again. None: another kind of error."""


class Damaged(Event):
    """A file of the store is not what was written. What is a function of the rest is made again."""

    kind: Literal["damaged"] = "damaged"
    path: str
    """Path in the store."""
    reason: str
    """One sentence."""
    checkpoint: str | None = None
    """Id of the checkpoint of a run or soup that the file belongs to. None: another file."""


class RetryDecided(Event):
    """The order is tried again after a pause."""

    kind: Literal["retry_decided"] = "retry_decided"
    after_s: float
    reason: str
    micro_batch: int | None = None


class BackoffOver(Event):
    kind: Literal["backoff_over"] = "backoff_over"


class GaveUp(Event):
    """The order is not tried again. Its run, if it has one, has failed."""

    kind: Literal["gave_up"] = "gave_up"
    reason: str


class FinishRequested(Event):
    """Training ends, and soups are made of the committed checkpoints."""

    kind: Literal["finish_requested"] = "finish_requested"
    reason: str


class Extended(Event):
    """The experiment gained runs, recipes or ensembles."""

    kind: Literal["extended"] = "extended"
    before: dict[str, Any]
    """Identity of the experiment until then."""
    runs: int
    """Number of runs added. With more runs, training that was finished on request goes on."""


class Cancelled(Event):
    """An open order that nothing needs any more was withdrawn."""

    kind: Literal["cancelled"] = "cancelled"


class Stopped(Event):
    """The user stopped the driver. The same command continues the experiment."""

    kind: Literal["stopped"] = "stopped"
    reason: str


class Finished(Event):
    kind: Literal["finished"] = "finished"
    wall_s: float
    """Seconds that drivers have run, all of them together."""
