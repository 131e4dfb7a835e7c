"""Dispatch: the function for each kind of order, and the event for an exception.

    order -> perform -> events, the last of them `failed` if an exception was raised

An exception becomes one `failed` event with its traceback. The schedule decides what follows;
nothing is retried here. Imports are late: a rank loads only what it uses.
"""

import importlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, cast

from workers.context import WorkerContext
from workers.errors import UserError, first_line
from workers.storage.layout import checkpoint_of, made_file_of, predictions_dir
from workers.storage.manifest import discard
from workers.storage.store import CorruptFile
from workers.text import without_credentials
from workers.types import AnyEvent, AnyOrder, ErrorClass, Failed, Retired, RetireOrder, Started

OrderFunction = Callable[[Any, int, WorkerContext], Iterator[AnyEvent]]

ORDER_FUNCTIONS = {
    "preflight": "workers.preflight:preflight",
    "base": "workers.training.base_model:make_base",
    "train": "workers.training.train:train",
    "merge": "workers.merging.recipe_driver:merge",
    "geometry": "workers.merging.gram:measure_gram_matrices",
    "gradient": "workers.merging.gradient:measure_gradient",
    "taste": "workers.merging.taste:taste",
    "blend": "workers.merging.write_soup:blend_soup",
    "diversity": "workers.analysis.diversity:measure_diversity",
    "score": "workers.scoring.score:score_checkpoint",
    "point": "workers.merging.taste:score_mix",
    "compare": "workers.scoring.compare:compare",
    "analyse": "workers.analysis.analyse:analyse",
    "serve": "workers.serving.export:serve",
    "retire": "workers.dispatch:retire",
}
"""Kind of order -> `module:function`."""

IMPORT = "workers.training.import_weights:adopt"
"""Performs the training order of a run whose weights were trained elsewhere."""

INSTANT = frozenset({"merge", "retire"})
"""Orders that need no torch and send no `started` event."""


def perform(worker: WorkerContext, order: AnyOrder, attempt: int) -> Iterator[AnyEvent]:
    """The events of one order, with order, run, attempt and slot filled in."""
    origin = {"order": order.id, "run": order.run_id, "attempt": attempt, "slot": worker.slot}
    worker.progress.begin(order.id)
    worker.store.expect(order.files)
    try:
        for event in _events(worker, order, attempt):
            yield event.model_copy(update=origin)
    finally:
        worker.progress.end()
        worker.last_step_at = time.monotonic()


def _events(worker: WorkerContext, order: AnyOrder, attempt: int) -> Iterator[AnyEvent]:
    if order.kind not in INSTANT:
        worker.set_num_threads()
        if order.kind != "train":  # training sends it itself, when its first batch is ready
            yield Started(warm=worker.is_warm, gap_s=worker.gap_s())
    yield from order_function(order)(order, attempt, worker)


def order_function(order: AnyOrder) -> OrderFunction:
    """The function for the order's kind, imported at first use. A run with train.weights trains
    nothing: it imports them."""
    imports = order.kind == "train" and order.run.train.weights is not None
    module, _, function = (IMPORT if imports else ORDER_FUNCTIONS[order.kind]).partition(":")
    return cast(OrderFunction, getattr(importlib.import_module(module), function))


def perform_safely(worker: WorkerContext, order: AnyOrder, attempt: int) -> Iterator[AnyEvent]:
    """The events of an order. An exception becomes the last one, and all warm state is dropped."""
    try:
        yield from perform(worker, order, attempt)
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
    """The event for an exception, without order, run, attempt and slot."""
    line = first_line(error)
    kind = classify(error)
    is_expected = kind in ("refused", "storage", "corrupt", "diverged")
    return Failed(
        error=kind,
        message=without_credentials(line if is_expected else f"{type(error).__name__}: {line}"),
        traceback=without_credentials("".join(traceback.format_exception(error))),
        checkpoint=checkpoint_of(str(error)) if kind == "corrupt" else None,
        path=made_file_of(str(error)) if kind == "corrupt" else None,
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


def retire(order: RetireOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    for checkpoint in order.checkpoints:
        discard(worker.store, checkpoint.id)
        worker.store.delete(predictions_dir(checkpoint.id))
    yield Retired(checkpoints=tuple(checkpoint.id for checkpoint in order.checkpoints))
