"""Imported checkpoints: runs that are not trained here, but take their weights from a file.

    file of timm's train script -> wrappers and prefixes off -> check keys, shapes, dtypes, values
         preflight: refuse                                   -> run's order: score, commit

Afterwards such a run is like any other: an ingredient with a selection score.
"""

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.errors import UserError
from workers.merging.blend import refuse_not_finite
from workers.models.build import preprocessing
from workers.models.heads import in_head
from workers.models.pretrained import assign_weights, read_weights, refuse_mismatch
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.predictions import write_predictions
from workers.types import (
    SELECTION,
    AnyEvent,
    Checkpointed,
    FileInfo,
    Started,
    Trained,
    TrainOrder,
)

COUNTER = "num_batches_tracked"
"""Often missing in converted weights, and never read here."""


def require_weights(model: nn.Module, train: TrainConfig) -> None:
    """Raises UserError that names file and tensor if `train.weights` do not fit the model."""
    if train.weights is not None:
        fitting_weights(model, train)


def fitting_weights(model: nn.Module, train: TrainConfig) -> dict[str, Tensor]:
    """The tensors of `train.weights`, with the keys, shapes and dtypes of `model`, all finite.

    Raises UserError that names file and tensor.
    """
    assert train.weights is not None
    owner = f"checkpoint {train.weights}"
    weights = _ema_weights(train.weights) if train.weights_ema else _raw_weights(train.weights)
    live: dict[str, Tensor] = model.state_dict()
    counters = {name: t for name, t in live.items() if name.endswith(COUNTER)}
    weights = counters | weights
    _refuse_other_classes(model, live, weights, owner)
    refuse_mismatch(live, weights, owner)
    _refuse_dtypes(live, weights, owner)
    for name, tensor in weights.items():
        refuse_not_finite(owner, name, tensor)
    return {name: weights[name] for name in live}


def adopt(order: TrainOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Score `order.run.train.weights` on the selection split and commit them as the run's only
    checkpoint, at `order.stop_step`.

    Yields Started, Checkpointed, Trained. Raises UserError for weights that do not fit.
    """
    began, run = time.monotonic(), order.run
    yield Started(warm=worker.holds(run.model), gap_s=worker.gap_s())
    model = worker.model(run.model)
    worker.loaded_checkpoint_id = None
    assign_weights(model, fitting_weights(model, run.train), f"checkpoint {run.train.weights}")
    worker.progress.touch()
    rows, labels = _selection_logits(model, worker), worker.images.labels(SELECTION)
    name, selection = f"{run.id}/{order.stop_step:08d}", score(rows, labels)

    files: dict[str, FileInfo] = {}

    def predictions() -> None:
        id_, keys = f"{name}-{attempt}", worker.images.keys(SELECTION)
        files.update(write_predictions(worker.store, id_, SELECTION, keys, labels, rows))

    checkpoint = write_checkpoint(
        worker.store,
        name,
        attempt,
        order.stop_step,
        model.state_dict(),
        base=order.start.name,
        score=selection,
        before_manifest=predictions,
    )
    yield Checkpointed(checkpoint=checkpoint, score=selection, files=files)
    yield Trained(step=order.stop_step, busy_s=time.monotonic() - began)


def _selection_logits(model: nn.Module, worker: WorkerContext) -> np.ndarray:
    config, touch = preprocessing(model, worker.config.data), worker.progress.touch
    pixels = eval_pixels(worker.images, SELECTION, config, touch=touch)
    return logits(model, pixels, config, worker.config.device, lambda _: touch())


def _raw_weights(path: str) -> dict[str, Tensor]:
    return read_weights(path, "checkpoint", use_ema=False)


def _ema_weights(path: str) -> dict[str, Tensor]:
    """Refuses a file without averaged weights, where timm silently falls back to the raw ones."""
    averaged, raw = read_weights(path, "checkpoint", use_ema=True), _raw_weights(path)
    if averaged.keys() == raw.keys() and all(torch.equal(t, raw[n]) for n, t in averaged.items()):
        raise UserError(
            f"checkpoint {path} holds no averaged weights (state_dict_ema or model_ema); leave out "
            "--ema, or this checkpoint"
        )
    return averaged


def _refuse_other_classes(
    model: nn.Module, live: Mapping[str, Tensor], weights: Mapping[str, Tensor], owner: str
) -> None:
    """Refuses a classifier that differs only in its number of outputs."""
    for name, tensor in live.items():
        other = weights.get(name)
        if other is None or not in_head(model, name) or other.ndim != tensor.ndim or not other.ndim:
            continue
        if other.shape[1:] == tensor.shape[1:] and len(other) != len(tensor):
            raise UserError(
                f"{owner}: tensor {name} has {len(other)} rows, so it was trained on as many "
                f"classes, but the images have {len(tensor)}; give images of the classes that it "
                "was trained on"
            )


def _refuse_dtypes(live: Mapping[str, Tensor], weights: Mapping[str, Tensor], owner: str) -> None:
    for name, tensor in live.items():
        if weights[name].dtype != tensor.dtype:
            raise UserError(
                f"{owner}: tensor {name} is {weights[name].dtype}, the model's is {tensor.dtype}; "
                f"save the checkpoint as {tensor.dtype}"
            )
