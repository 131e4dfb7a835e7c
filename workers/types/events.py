"""Events come up: what happened. Each becomes one line of the ledger."""

import time
from typing import Literal

from pydantic import Field

from workers.types.preflight import PreflightResult
from workers.types.values import Checkpoint, FrozenModel, Metric, Score


class Event(FrozenModel):
    """A fact. `seq` is given by the ledger; order, attempt and slot by the fleet."""

    seq: int = -1
    time: float = Field(default_factory=time.time)
    """Unix seconds where it happened."""
    order: str | None = None
    run: str | None = None
    attempt: int | None = None
    slot: str | None = None


class Opened(Event):
    """A driver took over; what an earlier one had ordered is open again."""

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
    """Unix seconds since when it could have run."""


class Started(Event):
    kind: Literal["started"] = "started"
    warm: bool
    """The slot already held a model of this shape."""
    gap_s: float | None
    """Seconds from the last step on this slot to the first batch ready; None for the first."""


class Preflighted(Event):
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
    """Mean training loss of the epoch, nats; None where training left the finite numbers."""
    lr: float
    images_per_s: float
    score: Score
    """On the selection split."""
    ema: Score | None = None
    """Likewise of the moving average, if the run keeps one."""
    held_out: Score | None = None
    """On the images of the run's fold, if it has one."""


class Checkpointed(Event):
    """A complete checkpoint: its manifest is in the store."""

    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint: Checkpoint
    score: Score | None
    """On the selection split; None in the middle of an epoch."""


class Trained(Event):
    """The run reached the step its order names; all its checkpoints are complete."""

    kind: Literal["trained"] = "trained"
    step: int
    busy_s: float
    early: bool = False
    """The run's patience is over: it will never go beyond this step."""


class Interrupted(Event):
    """The segment ended early, in good order, after a checkpoint (grace period)."""

    kind: Literal["interrupted"] = "interrupted"
    reason: str


class Blended(Event):
    kind: Literal["blended"] = "blended"
    checkpoint: Checkpoint
    busy_s: float


class Scored(Event):
    kind: Literal["scored"] = "scored"
    checkpoint: str
    """Name; of a mix that is none, `PointOrder.name`."""
    scores: dict[str, Score]
    busy_s: float


class Delta(FrozenModel):
    """A paired difference to the best single model, with its 95 % bootstrap interval."""

    metric: Metric
    delta: float
    ci95: tuple[float, float]
    p: float | None = None
    """Exact McNemar test of equal top-1, two-sided; None for other metrics, and in ledgers that
    were written without it."""


class EnsembleResult(FrozenModel):
    id: str
    kind: str
    members: tuple[str, ...]
    scores: dict[str, Score]
    """Not of the images it was fitted on."""
    vs_best_single: dict[str, Delta]
    groups: tuple[tuple[str, ...], ...] = ()
    """Of a stacked classifier: whose logits are averaged before they are its inputs, in order."""
    fitted_on: str | None = None
    """Likewise: `out of fold`, or the selection split."""


class Compared(Event):
    kind: Literal["compared"] = "compared"
    key: str
    """Of what was compared: `CompareOrder.key`."""
    soups: dict[str, dict[str, Delta]]
    """Soup name -> split -> difference."""
    ensembles: tuple[EnsembleResult, ...]


class Analysed(Event):
    """`analysis.json` is in the store."""

    kind: Literal["analysed"] = "analysed"
    key: str
    """Of what was analysed: `AnalyseOrder.key`."""
    busy_s: float


class Served(Event):
    kind: Literal["served"] = "served"
    soup: str | None
    """Name; None when there is nothing to serve."""


class Retired(Event):
    kind: Literal["retired"] = "retired"
    checkpoints: tuple[str, ...]
    """Ids."""


ErrorClass = Literal[
    "refused",  # a user's mistake found by a worker: never retried
    "lost",  # worker, rank or node died
    "preempted",  # its node is being drained
    "hang",  # no sign of life within fleet.heartbeat_s
    "oom",  # out of (accelerator) memory
    "storage",  # the store did not answer
    "corrupt",  # a committed file does not have the bytes its manifest names
    "diverged",  # weights or loss left the finite numbers
    "error",  # an exception of ours or the user's code
]


class Failed(Event):
    """An attempt at an order ended without its result; the schedule decides what follows."""

    kind: Literal["failed"] = "failed"
    error: ErrorClass
    message: str
    """One sentence."""
    traceback: str = ""
    checkpoint: str | None = None
    """Id of the checkpoint that is corrupt."""


class RetryDecided(Event):
    """The order will get a new attempt after a pause."""

    kind: Literal["retry_decided"] = "retry_decided"
    after_s: float
    reason: str
    micro_batch: int | None = None


class BackoffOver(Event):
    kind: Literal["backoff_over"] = "backoff_over"


class GaveUp(Event):
    """The order will not be tried again; its run, if any, has failed."""

    kind: Literal["gave_up"] = "gave_up"
    reason: str


class FinishRequested(Event):
    """Stop training, soup what is committed."""

    kind: Literal["finish_requested"] = "finish_requested"
    reason: str


class Cancelled(Event):
    """An open order that nothing waits for any more was taken back."""

    kind: Literal["cancelled"] = "cancelled"


class Stopped(Event):
    """The user stopped the driver; the same command goes on."""

    kind: Literal["stopped"] = "stopped"
    reason: str


class Finished(Event):
    kind: Literal["finished"] = "finished"
    wall_s: float
    """Of all drivers together."""
