"""Scoring: the logits of one checkpoint on its splits, cached and scored; and those of one mix."""

import time
from collections.abc import Iterator

import numpy as np
from torch import nn

from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.models.build import preprocessing
from workers.models.pretrained import assign_weights
from workers.scoring.forward import logits
from workers.scoring.metrics import score as metrics_of
from workers.storage.checkpoints import open_weights
from workers.storage.predictions import read_predictions, write_predictions
from workers.types import AnyEvent, Scored, ScoreOrder


def score_checkpoint(order: ScoreOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Yields Scored. Predictions that are cached already are not made again."""
    began = time.monotonic()
    cached = {split: _cached(order.checkpoint.id, split, worker) for split in order.splits}
    made = _forward(order, [split for split, rows in cached.items() if rows is None], worker)
    scores = {
        split: metrics_of(made[split] if rows is None else rows, worker.images.labels(split))
        for split, rows in cached.items()
    }
    busy_s = time.monotonic() - began
    yield Scored(checkpoint=order.checkpoint.name, scores=scores, busy_s=busy_s)


def _cached(checkpoint_id: str, split: str, worker: WorkerContext) -> np.ndarray | None:
    """Logits in the store, if they are of the split as it is."""
    try:
        keys, labels, rows = read_predictions(worker.store, checkpoint_id, split)
    except FileNotFoundError:
        return None
    same = keys == worker.images.keys(split)
    return rows if same and np.array_equal(labels, worker.images.labels(split)) else None


def _forward(order: ScoreOrder, splits: list[str], worker: WorkerContext) -> dict[str, np.ndarray]:
    """Logits of the splits by name, also written to the store."""
    if not splits:
        return {}
    model = worker.model(order.cohort.model)
    worker.loaded_checkpoint_id = None
    with open_weights(worker.store, order.checkpoint) as weights:
        assign_weights(model, weights, order.checkpoint.id)
    made = {}
    for split in splits:
        made[split] = split_logits(model, split, worker)
        labels = worker.images.labels(split)
        keys = worker.images.keys(split)
        write_predictions(worker.store, order.checkpoint.id, split, keys, labels, made[split])
    return made


def split_logits(model: nn.Module, split: str, worker: WorkerContext) -> np.ndarray:
    """(N, C) of the split as its evaluation sees it."""
    config = preprocessing(model, worker.setting.data)
    pixels = eval_pixels(worker.images, split, config, touch=worker.progress.touch)
    return logits(model, pixels, config, worker.setting.device, lambda _: worker.progress.touch())
