"""What went wrong, as an event: the fault boundary of a worker.

A worker's exception becomes one `failed` event with its traceback; the schedule decides what
follows. Nothing is retried here.
"""

import traceback
from collections.abc import Iterator

from workers.storage import CorruptFile, checkpoint_of
from workers.types import AnyEvent, AnyOrder, ErrorClass, Failed, UserError
from workers.worker import Worker


def perform_safely(worker: Worker, order: AnyOrder, attempt: int) -> Iterator[AnyEvent]:
    """The events of an order; an exception is the last of them, and leaves nothing warm behind."""
    try:
        yield from worker.perform(order, attempt)
    except Exception as error:  # noqa: BLE001  the declared fault boundary: see the docstring
        worker.forget()
        yield failed(error).model_copy(
            update={
                "order": order.id,
                "run": order.run_id,
                "attempt": attempt,
                "slot": worker.slot,
            }
        )


def failed(error: BaseException) -> Failed:
    text = str(error).strip() or type(error).__name__
    first_line = text.splitlines()[0]
    kind = classify(error)
    named = kind in ("refused", "storage", "corrupt", "diverged")
    return Failed(
        error=kind,
        message=first_line if named else f"{type(error).__name__}: {first_line}",
        traceback="".join(traceback.format_exception(error)),
        checkpoint=checkpoint_of(text) if kind == "corrupt" else None,
    )


def classify(error: BaseException) -> ErrorClass:
    if isinstance(error, UserError):
        return "refused"
    if isinstance(error, CorruptFile):
        return "corrupt"
    if isinstance(error, FloatingPointError):
        return "diverged"
    # torch.OutOfMemoryError by name: this module must not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    if isinstance(error, OSError):
        return "storage"
    return "error"
