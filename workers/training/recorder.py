"""Files that rank 0 writes while a run trains: scores, predictions, checkpoints, the log.

network, average --evaluate--> scores, predictions --+
network, average, state --save--> background: predictions, log, weights, manifest --> Checkpointed
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from torch import nn

from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.models.build import preprocessing
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.storage.checkpoint_writer import CheckpointWriter
from workers.storage.checkpoints import TrainState
from workers.storage.manifest import read_manifest
from workers.storage.predictions import write_predictions
from workers.training.run_log import RunLog
from workers.types import (
    SELECTION,
    AnyEvent,
    Checkpoint,
    Checkpointed,
    Evaluated,
    FileInfo,
    Score,
    TrainOrder,
    ema_id,
)

CONFIRM_LIMIT_S = 900.0
"""Longest time in which a store confirms a file without accepting a byte."""


@dataclass(frozen=True)
class Evaluation:
    """Scores and logits of one network on the splits of a run."""

    step: int
    scores: dict[str, Score]
    logits: dict[str, np.ndarray]


class RunRecorder:
    """Writes for one order; a context, so that the writer's thread and the log end with it."""

    def __init__(self, worker: WorkerContext, order: TrainOrder, attempt: int) -> None:
        self._worker, self._order, self._attempt = worker, order, attempt
        self._base = _base_of(worker, order)
        self._writer = CheckpointWriter(worker.store)
        own, run = order.own_checkpoint, order.run
        self._log = RunLog(worker.store, run, attempt, own.step)
        fold = None if run.fold is None else f"fold:{run.fold}"
        self._held_out = fold
        self._splits = (SELECTION, fold) if fold else (SELECTION,)
        self._scores: dict[str, Score | None] = {}
        self._files: dict[str, dict[str, FileInfo]] = {}
        """Files of predictions, by name of the checkpoint."""
        self._evaluations: dict[str, Evaluation] = {}
        """The latest evaluations, by id: the run's and its moving average's."""
        self._log.log(
            f"training from {order.start.id} at step {own.step} to step {order.stop_step}"
        )

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._log.log(f"ended by {type(error).__name__}: {error}")
        try:
            with self._waiting():
                self._writer.__exit__(kind, error, traceback)
        finally:
            self._log.close()

    def _waiting(self) -> AbstractContextManager[None]:
        """Waiting for the writer, whose bytes are signs of life; an object store or a disk may be
        silent before it confirms a file."""
        return self._worker.progress.busy("waiting for a checkpoint to be written", CONFIRM_LIMIT_S)

    def show_step(self, step: int, loss: float, lr: float) -> None:
        self._log.scalars(step, train__loss=loss, train__lr=lr)

    def evaluate(
        self, net: nn.Module, average: nn.Module | None, *, step: int, epoch: int, **facts: float
    ) -> Evaluated:
        """Score the network and its moving average on the selection split and the run's held-out
        fold, in float32. `facts` are further fields of Evaluated."""
        run = self._order.run.id
        self._evaluations = {run: self._evaluate(net, step)}
        if average is not None:
            self._evaluations[ema_id(run)] = self._evaluate(average, step)
        own, averaged = self._evaluations[run].scores, self._evaluations.get(ema_id(run))
        evaluated = Evaluated(
            step=step,
            epoch=epoch,
            score=own[SELECTION],
            ema=averaged.scores[SELECTION] if averaged else None,
            held_out=own[self._held_out] if self._held_out else None,
            **facts,
        )
        self._log_epoch(evaluated)
        return evaluated

    def _evaluate(self, net: nn.Module, step: int) -> Evaluation:
        worker, touch = self._worker, self._worker.progress.touch
        prepared = preprocessing(net, worker.config.data)
        scores, values = {}, {}
        for split in self._splits:
            values[split] = logits(
                net,
                eval_pixels(worker.images, split, prepared, touch=touch),
                prepared,
                worker.config.device,
                on_batch=lambda _: touch(),
            )
            scores[split] = score(values[split], worker.images.labels(split))
        return Evaluation(step, scores, values)

    def save(self, net: nn.Module, average: nn.Module | None, step: int, state: TrainState) -> None:
        """Hand the checkpoint of `step` to the background writer, with its score if it has one.

        The moving average is written first, so that a complete checkpoint of the run implies it.
        """
        self._log.log(f"checkpoint at step {step}")
        run = self._order.run.id
        with self._waiting():
            if average is not None:
                self._submit(ema_id(run), average, step, None)
            self._submit(run, net, step, state)

    def _submit(self, run: str, net: nn.Module, step: int, state: TrainState | None) -> None:
        name = f"{run}/{step:08d}"
        evaluation = self._evaluations.get(run)
        if evaluation is not None and evaluation.step != step:
            evaluation = None
        self._scores[name] = evaluation.scores[SELECTION] if evaluation else None

        def before_manifest() -> None:
            for split, values in evaluation.logits.items() if evaluation else ():
                files = self._write_predictions(f"{name}-{self._attempt}", split, values)
                self._files.setdefault(name, {}).update(files)
            self._log.put()

        self._writer.submit(
            name,
            self._attempt,
            step,
            net.state_dict(),
            train_state=state,
            base=self._base,
            score=self._scores[name],
            before_manifest=before_manifest,
        )

    def completed(self) -> Iterator[AnyEvent]:
        """Checkpoints that became complete since the last call."""
        yield from map(self._event, self._writer.done())

    def flush(self) -> Iterator[AnyEvent]:
        """Wait for all checkpoints to become complete."""
        with self._waiting():
            finished = self._writer.flush()
        yield from map(self._event, finished)
        self._log.log(f"done; checkpoints held training up for {self._writer.stall_s:.2f} s")

    def _event(self, checkpoint: Checkpoint) -> Checkpointed:
        return Checkpointed(
            checkpoint=checkpoint,
            score=self._scores.pop(checkpoint.name),
            files=self._files.pop(checkpoint.name, {}),
            write_s=self._writer.longest_s,
        )

    def _write_predictions(
        self, checkpoint_id: str, split: str, values: np.ndarray
    ) -> dict[str, FileInfo]:
        images = self._worker.images
        keys, labels = images.keys(split), images.labels(split)
        return write_predictions(self._worker.store, checkpoint_id, split, keys, labels, values)

    def _log_epoch(self, event: Evaluated) -> None:
        top1 = f"{SELECTION} top-1 {100 * event.score.top1:.2f} %"
        if event.held_out:
            top1 += f", {self._held_out} top-1 {100 * event.held_out.top1:.2f} %"
        if event.ema:
            top1 += f", moving average {100 * event.ema.top1:.2f} %"
        self._log.log(
            f"epoch {event.epoch} (step {event.step}): loss {event.loss:.4f}, {top1}, "
            f"{event.images_per_s:.1f} images/s"
        )
        self._log.scalars(
            event.step,
            train__epoch_loss=event.loss,
            train__images_per_s=event.images_per_s,
        )
        for group, score_ in (
            ("val", event.score),
            ("fold", event.held_out),
            ("ema", event.ema),
        ):
            for metric in ("top1", "nll", "macro_f1", "ece") if score_ else ():
                self._log.scalars(event.step, **{f"{group}__{metric}": getattr(score_, metric)})


def _base_of(worker: WorkerContext, order: TrainOrder) -> str | None:
    """Name of the base that the run descends from. None: unknown."""
    if order.own_checkpoint.name.startswith("base/"):
        return order.own_checkpoint.name
    manifest = read_manifest(worker.store, order.own_checkpoint.id)
    return manifest.base if manifest else None
