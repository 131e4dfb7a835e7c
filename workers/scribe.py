"""What rank 0 writes and tells while a run trains: scores, predictions, checkpoints, the log.

network --evaluate--> score, predictions --+
network, state --save--> background: predictions, log, weights, manifest --> Checkpointed
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch import nn

from workers.checkpoints import CheckpointWriter, TrainState
from workers.data import eval_pixels
from workers.evaluate import logits, write_predictions
from workers.manifest import read_manifest
from workers.metrics import score
from workers.model import preprocessing
from workers.runlog import RunLog
from workers.types import (
    SELECTION,
    AnyEvent,
    Checkpointed,
    Evaluated,
    Score,
    TrainOrder,
)
from workers.worker import Worker


class Scribe:
    """Of one order; a context, so that the writer's thread and the log end with it."""

    def __init__(self, worker: Worker, order: TrainOrder, attempt: int, step: int) -> None:
        self._worker, self._order, self._attempt = worker, order, attempt
        self._base = _base_of(worker, order)
        self._writer = CheckpointWriter(worker.store)
        self._log = RunLog(worker.store, order.run, attempt, step)
        self._scores: dict[str, Score | None] = {}
        self._judged: tuple[int, Score, Any] | None = None
        """(step, score, logits) of the latest evaluation."""
        self._log.say(f"training from {order.start.id} at step {step} to step {order.stop_step}")

    def __enter__(self) -> "Scribe":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._log.say(f"ended by {type(error).__name__}: {error}")
        try:
            self._writer.__exit__(kind, error, traceback)
        finally:
            self._log.close()

    def show_step(self, step: int, loss: float, lr: float) -> None:
        self._log.scalars(step, train__loss=loss, train__lr=lr)

    def evaluate(self, net: nn.Module, *, step: int, epoch: int, **facts: float) -> Evaluated:
        """Score the network on the selection split, in float32. `facts` are Evaluated's."""
        worker = self._worker
        prepared = preprocessing(net, worker.setting.data)
        values = logits(
            net,
            eval_pixels(worker.images, SELECTION, prepared),
            prepared,
            worker.setting.device,
            on_batch=lambda _: worker.progress.touch(),
        )
        judged = score(values, worker.images.labels(SELECTION))
        self._judged = (step, judged, values)
        self._tell_epoch(step, epoch, judged, **facts)
        return Evaluated(step=step, epoch=epoch, score=judged, **facts)

    def save(self, net: nn.Module, step: int, state: TrainState) -> None:
        """Hand the checkpoint of `step` to the background writer, with its score if it has one."""
        name = f"{self._order.run.id}/{step:08d}"
        judged, values = None, None
        if self._judged is not None and self._judged[0] == step:
            _, judged, values = self._judged
        self._scores[name] = judged
        self._log.say(f"checkpoint at step {step}")

        def before_manifest() -> None:
            if values is not None:
                self._write_predictions(f"{name}-{self._attempt}", values)
            self._log.put()

        self._writer.submit(
            name,
            self._attempt,
            step,
            net.state_dict(),
            train_state=state,
            base=self._base,
            score=judged,
            before_manifest=before_manifest,
        )

    def written(self) -> Iterator[AnyEvent]:
        """Checkpoints that became complete since the last look."""
        for checkpoint in self._writer.done():
            yield Checkpointed(checkpoint=checkpoint, score=self._scores.pop(checkpoint.name))

    def flush(self) -> Iterator[AnyEvent]:
        """All that is left to become complete; waits for it."""
        for checkpoint in self._writer.flush():
            yield Checkpointed(checkpoint=checkpoint, score=self._scores.pop(checkpoint.name))
        self._log.say(f"done; checkpoints held training up for {self._writer.stall_s:.2f} s")

    def _write_predictions(self, checkpoint_id: str, values: Any) -> None:
        images = self._worker.images
        keys, labels = images.keys(SELECTION), images.labels(SELECTION)
        write_predictions(self._worker.store, checkpoint_id, SELECTION, keys, labels, values)

    def _tell_epoch(self, step: int, epoch: int, judged: Score, **facts: float) -> None:
        self._log.say(
            f"epoch {epoch} (step {step}): loss {facts['loss']:.4f}, {SELECTION} top-1 "
            f"{100 * judged.top1:.2f} %, {facts['images_per_s']:.1f} images/s"
        )
        self._log.scalars(
            step,
            train__epoch_loss=facts["loss"],
            train__images_per_s=facts["images_per_s"],
            val__top1=judged.top1,
            val__nll=judged.nll,
            val__macro_f1=judged.macro_f1,
            val__ece=judged.ece,
        )


def _base_of(worker: Worker, order: TrainOrder) -> str | None:
    """Name of the base that the weights go back to."""
    if order.start.name.startswith("base/"):
        return order.start.name
    manifest = read_manifest(worker.store, order.start.id)
    return manifest.base if manifest else None
