"""Deleting checkpoints that nothing can choose any more, with their cached predictions."""

from collections.abc import Iterator

from workers.manifest import discard
from workers.storage import predictions_dir
from workers.types import AnyEvent, Retired, RetireOrder
from workers.worker import Worker


def retire(order: RetireOrder, attempt: int, worker: Worker) -> Iterator[AnyEvent]:
    for checkpoint in order.checkpoints:
        discard(worker.store, checkpoint.id)
        worker.store.delete(predictions_dir(checkpoint.id))
    yield Retired(checkpoints=tuple(checkpoint.id for checkpoint in order.checkpoints))
