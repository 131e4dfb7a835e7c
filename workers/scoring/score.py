"""Scoring a checkpoint: its logits on the splits, cached in the store, and their metrics."""

import time
from collections.abc import Iterator

import numpy as np
from torch import nn

from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.models.build import preprocessing
from workers.models.pretrained import assign_weights
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.storage.checkpoints import open_weights
from workers.storage.predictions import read_predictions, write_predictions
from workers.types import AnyEvent, Scored, ScoreOrder


def score_checkpoint(order: ScoreOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Yields Scored. Cached predictions are used if they are of the same images."""
    began = time.monotonic()
    cached = {split: _cached(order.checkpoint.id, split, worker) for split in order.splits}
    rows = {split: logits for split, logits in cached.items() if logits is not None}
    rows |= _forward(order, [split for split in order.splits if split not in rows], worker)
    scores = {split: score(rows[split], worker.images.labels(split)) for split in order.splits}
    busy_s = time.monotonic() - began
    yield Scored(checkpoint=order.checkpoint.name, scores=scores, busy_s=busy_s)


def _cached(checkpoint_id: str, split: str, worker: WorkerContext) -> np.ndarray | None:
    """Logits in the store, if they are of the split's present images and labels."""
    try:
        keys, labels, rows = read_predictions(worker.store, checkpoint_id, split)
    except FileNotFoundError:
        return None
    same = keys == worker.images.keys(split)
    return rows if same and np.array_equal(labels, worker.images.labels(split)) else None


def _forward(order: ScoreOrder, splits: list[str], worker: WorkerContext) -> dict[str, np.ndarray]:
    """Compute the logits of the splits, and write them to the store."""
    if not splits:
        return {}
    model = worker.model(order.cohort.model)
    worker.loaded_checkpoint_id = None
    with open_weights(worker.store, order.checkpoint) as weights:
        assign_weights(model, weights, order.checkpoint.id)
    rows = {}
    for split in splits:
        rows[split] = split_logits(model, split, worker)
        labels = worker.images.labels(split)
        keys = worker.images.keys(split)
        write_predictions(worker.store, order.checkpoint.id, split, keys, labels, rows[split])
    return rows


def split_logits(model: nn.Module, split: str, worker: WorkerContext) -> np.ndarray:
    """(N, C) logits of the split in evaluation preprocessing."""
    config = preprocessing(model, worker.config.data)
    pixels = eval_pixels(worker.images, split, config, touch=worker.progress.touch)
    return logits(model, pixels, config, worker.config.device, lambda _: worker.progress.touch())
