"""Scoring a checkpoint: its logits on the splits, cached in the store, and their metrics."""

import time
from collections.abc import Iterator

import numpy as np
from torch import nn

from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.data.images import FOLD
from workers.models.build import preprocessing
from workers.models.pretrained import assign_weights
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.storage.checkpoints import open_weights
from workers.storage.predictions import read_outcomes, read_predictions, write_predictions
from workers.storage.store import CorruptFile
from workers.types import SELECTION, AnyEvent, FileInfo, Scored, ScoreOrder


def score_checkpoint(order: ScoreOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Yields Scored. Cached predictions are used if they are of the same images."""
    began = time.monotonic()
    cached = {split: _cached(order.checkpoint.id, split, worker) for split in order.splits}
    rows = {split: logits for split, logits in cached.items() if logits is not None}
    missing = [split for split in order.splits if split not in rows]
    forwarded, files = _forward(order, missing, worker)
    rows |= forwarded
    scores = {
        split: score(rows[split], worker.images.labels(split))
        for split in order.splits
        if not split.startswith(FOLD)
    }
    busy_s = time.monotonic() - began
    yield Scored(checkpoint=order.checkpoint.name, scores=scores, busy_s=busy_s, files=files)


def _cached(checkpoint_id: str, split: str, worker: WorkerContext) -> np.ndarray | None:
    """Logits in the store, if they are what was written, for the split's images and labels."""
    try:
        keys, labels, rows = read_predictions(worker.store, checkpoint_id, split)
        if split == SELECTION:
            read_outcomes(worker.store, checkpoint_id, split)
    except CorruptFile:
        return None
    same = keys == worker.images.keys(split)
    return rows if same and np.array_equal(labels, worker.images.labels(split)) else None


def _forward(
    order: ScoreOrder, splits: list[str], worker: WorkerContext
) -> tuple[dict[str, np.ndarray], dict[str, FileInfo]]:
    """The logits of the splits, computed, and the files that were written with them."""
    if not splits:
        return {}, {}
    model = worker.model(order.cohort.model)
    worker.loaded_checkpoint_id = None
    with open_weights(worker.store, order.checkpoint) as weights:
        assign_weights(model, weights, order.checkpoint.id)
    rows: dict[str, np.ndarray] = {}
    files: dict[str, FileInfo] = {}
    for split in splits:
        rows[split] = split_logits(model, split, worker)
        labels = worker.images.labels(split)
        keys = worker.images.keys(split)
        id_ = order.checkpoint.id
        files |= write_predictions(worker.store, id_, split, keys, labels, rows[split])
    return rows, files


def split_logits(model: nn.Module, split: str, worker: WorkerContext) -> np.ndarray:
    """(N, C) logits of the split in evaluation preprocessing."""
    config = preprocessing(model, worker.config.data)
    pixels = eval_pixels(worker.images, split, config, touch=worker.progress.touch)
    return logits(model, pixels, config, worker.config.device, lambda _: worker.progress.touch())
