"""Tastes: score a mix on the selection split, and stop once it cannot reach the threshold.

checkpoints --blend--> warm model --BatchNorm--> images, hard ones first --> score, or a bound
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn

from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.merging import batchnorm
from workers.merging.blend import NamedTensors, blend
from workers.models.build import preprocessing
from workers.models.pretrained import assign_weights
from workers.scoring.forward import EVAL_BATCH, logits
from workers.scoring.metrics import pack_hits, predictions, score
from workers.scoring.score import split_logits
from workers.storage.checkpoints import open_weights
from workers.storage.predictions import read_outcomes
from workers.types import (
    SELECTION,
    AnyEvent,
    Checkpoint,
    Cohort,
    Mix,
    Scored,
    ScoreMixOrder,
    Tasted,
    TasteOrder,
    TasteResult,
)


def taste(order: TasteOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """One event with the score of the mix, or with the bound that rules it out. Writes nothing.

    The batches are the same whether a taste can be stopped early or not, so stopping cannot change
    a score.
    """
    began = time.monotonic()
    model = worker.model(order.cohort.model)
    load_mix(model, order.mix, order.cohort, order.ingredients, worker)
    yield Tasted(
        mix=order.mix.key,
        tasting=_tasted(model, order, worker),
        cohort=order.cohort.id,
        busy_s=time.monotonic() - began,
    )


def load_mix(
    model: nn.Module,
    mix: Mix,
    cohort: Cohort,
    ingredients: tuple[Checkpoint, ...],
    worker: WorkerContext,
) -> None:
    """Make `model` the mix: blended weights, and BatchNorm statistics by the cohort's policy.

    `ingredients` are the checkpoints that the mix names. A mix of one checkpoint becomes exactly
    that checkpoint. Raises UserError for members that do not fit each other or the model.
    """
    worker.loaded_checkpoint_id = None
    checkpoints = {checkpoint.name: checkpoint for checkpoint in ingredients}
    with ExitStack() as opened:
        sources = {
            name: opened.enter_context(open_weights(worker.store, checkpoints[name]))
            for name in mix.names
        }
        first = mix.names[0]
        _load_blend(model, mix, sources)
        if mix.single is None:
            _set_batchnorm(model, cohort, sources[first], worker)


def _load_blend(model: nn.Module, mix: Mix, sources: Mapping[str, NamedTensors]) -> None:
    """Blend one tensor at a time, so that no second copy of the model exists."""
    first = mix.names[0]
    live = model.state_dict()
    shapes = {key: tensor.shape for key, tensor in sources[first].items()}
    if shapes != {key: tensor.shape for key, tensor in live.items()}:
        assign_weights(model, sources[first], f"checkpoint {first}")  # raises, naming the tensor
    with torch.no_grad():
        for key, tensor in blend(mix, sources):
            live[key].copy_(tensor)


def _set_batchnorm(
    model: nn.Module, cohort: Cohort, first: NamedTensors, worker: WorkerContext
) -> None:
    if cohort.batchnorm == "recompute":
        config = preprocessing(model, worker.config.data)
        count = worker.config.batchnorm_samples
        pixels = eval_pixels(worker.images, "train", config, count, worker.progress.touch)
        device = worker.config.device
        batchnorm.recompute(model, pixels, config, device, worker.progress.touch)
    elif cohort.batchnorm in ("best", "frozen"):
        batchnorm.restore_statistics(model, first)
    elif cohort.batchnorm == "average":
        batchnorm.repair(model)


def _tasted(model: nn.Module, order: TasteOrder, worker: WorkerContext) -> TasteResult:
    """Score batch by batch, until the threshold is out of reach."""
    config = preprocessing(model, worker.config.data)
    pixels = eval_pixels(worker.images, SELECTION, config, touch=worker.progress.touch)
    labels = worker.images.labels(SELECTION)
    queue = hard_images_first(order.hard_images_first, worker)
    at_least = None if order.hits else order.at_least
    rows = np.empty((len(queue), len(worker.images.classes)), np.float32)
    num_wrong = 0
    for start in range(0, len(queue), EVAL_BATCH):
        at_most = (len(queue) - num_wrong) / len(queue)
        if worker.config.metric == "top1" and _is_out_of_reach(at_least, order.strict, at_most):
            return TasteResult(score=None, at_most=at_most, samples=start)
        batch = queue[start : start + EVAL_BATCH]
        images = pixels[torch.from_numpy(batch)]
        rows[batch] = logits(model, images, config, worker.config.device)
        num_wrong += int((predictions(rows[batch]) != labels[batch]).sum())
        worker.progress.touch()
    # Scored in split order, so that the same logits give the same float as everywhere else.
    scored = score(rows, labels)
    selection = scored.selection(worker.config.metric)
    return TasteResult(
        score=selection,
        at_most=selection,
        samples=len(queue),
        hits=pack_hits(predictions(rows) == labels) if order.hits else None,
        nll=scored.nll,
    )


def _is_out_of_reach(at_least: float | None, strict: bool, at_most: float) -> bool:
    if at_least is None:
        return False
    return at_most <= at_least if strict else at_most < at_least


def hard_images_first(checkpoint_ids: tuple[str, ...], worker: WorkerContext) -> np.ndarray:
    """(N,) indices of the selection split, by how many of these checkpoints get an image wrong
    according to their cached predictions; among equals the lowest mean probability of the label
    first; then in split order.

    A mix is mostly wrong where its members are wrong or nearly so, so a hopeless mix is stopped
    early. The order depends on the checkpoints alone. If predictions of one are missing, it is the
    split order.
    """
    if worker.hard_images_first is None or worker.hard_images_first[0] != checkpoint_ids:
        worker.hard_images_first = checkpoint_ids, _by_hardness(checkpoint_ids, worker)
    queue: np.ndarray = worker.hard_images_first[1]
    return queue


def _by_hardness(checkpoint_ids: tuple[str, ...], worker: WorkerContext) -> np.ndarray:
    count = worker.images.count(SELECTION)
    num_wrong, confidence = np.zeros(count, np.int64), np.zeros(count)
    for checkpoint_id in checkpoint_ids:
        try:
            hit, probability = read_outcomes(worker.store, checkpoint_id, SELECTION)
        except FileNotFoundError:
            return np.arange(count)
        num_wrong += ~hit
        confidence += probability
    return np.lexsort((np.arange(count), np.nan_to_num(confidence), -num_wrong))


def score_mix(order: ScoreMixOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Yields Scored. Neither the mix nor its logits are written."""
    began = time.monotonic()
    model = worker.model(order.cohort.model)
    load_mix(model, order.mix, order.cohort, order.ingredients, worker)
    scores = {
        split: score(split_logits(model, split, worker), worker.images.labels(split))
        for split in order.splits
    }
    yield Scored(checkpoint=order.name, scores=scores, busy_s=time.monotonic() - began)
