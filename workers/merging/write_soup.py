"""Write a soup: blend the mix of a recipe into a checkpoint of its own, and rebuild it to verify.

    mix --load_mix--> warm model --> soups/<id>/{model.safetensors, config.json, soup.json}
                                                     |-- rebuild --> the same bytes, or corrupt

soup.json holds no times, attempts or paths: the same experiment writes the same file anywhere.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor

from workers.context import WorkerContext
from workers.merging.blend import blend
from workers.merging.taste import load_mix
from workers.models.build import timm_config
from workers.models.model_files import MODEL_CONFIG
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.checkpoints import open_weights
from workers.storage.safetensors_writer import HashingSink, write_tensors
from workers.storage.store import CorruptFile
from workers.types import (
    AnyEvent,
    Blended,
    BlendOrder,
    Checkpoint,
    Cohort,
    Decision,
    FrozenModel,
    Metric,
    Mix,
)

SOUP = "soup.json"


class Member(FrozenModel):
    """A checkpoint with a weight in the soup."""

    name: str
    sha256: str
    """Hash of its model.safetensors."""


class SoupFile(FrozenModel):
    """soup.json: how the soup was made, and all that is needed to make it again."""

    schema_version: Literal[1] = 1
    id: str
    """`soup/<id>`."""
    recipe: str
    cohort: Cohort
    batchnorm_samples: int
    mix: Mix
    members: tuple[Member, ...]
    """Members in order of acceptance."""
    metric: Metric
    score: float | None
    """Selection score, higher is better. None: the recipe did not ask for it."""
    decisions: tuple[Decision, ...]


def blend_soup(order: BlendOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Write the soup as a complete checkpoint `soup/<id>`.

    It needs no attempt number, because every writer writes the same bytes. Memory is that of one
    model; the sources are mapped.
    """
    began = time.monotonic()
    files = {MODEL_CONFIG: _config(order.cohort, worker), SOUP: _soup_file(order, worker)}
    tensors = _tensors(order.soup.mix, order.cohort, order.ingredients, worker)
    checkpoint = write_checkpoint(
        worker.store,
        order.name,
        None,
        0,
        tensors,
        base=order.cohort.base,
        extra_files=files,
    )
    yield Blended(checkpoint=checkpoint, busy_s=time.monotonic() - began)


def rebuild(soup: SoupFile, ingredients: tuple[Checkpoint, ...], worker: WorkerContext) -> str:
    """sha256 of the model.safetensors that this soup must have, made again from its members.

    Raises:
        CorruptFile: a member is missing, or its weights have changed.
    """
    checkpoints = {checkpoint.name: checkpoint for checkpoint in ingredients}
    for member in soup.members:
        checkpoint = checkpoints.get(member.name)
        if checkpoint is None or checkpoint.sha256 != member.sha256:
            reason = "is missing" if checkpoint is None else "has other weights now"
            raise CorruptFile(f"{soup.id} cannot be made again: its member {member.name} {reason}")
    worker.set_num_threads()  # outside an order nothing has; it is part of the result's bits
    sink = HashingSink()
    write_tensors(sink, _tensors(soup.mix, soup.cohort, ingredients, worker))
    return sink.sha256.hexdigest()


def _tensors(
    mix: Mix, cohort: Cohort, ingredients: tuple[Checkpoint, ...], worker: WorkerContext
) -> Mapping[str, Tensor]:
    """The state dict of the mix; views of the file if the mix is one checkpoint."""
    if mix.single is not None:
        (only,) = (checkpoint for checkpoint in ingredients if checkpoint.name == mix.single)
        return dict(blend(mix, {only.name: open_weights(worker.store, only)}))
    model = worker.model(cohort.model)
    load_mix(model, mix, cohort, ingredients, worker)
    tensors: dict[str, Tensor] = model.state_dict()
    return tensors


def _config(cohort: Cohort, worker: WorkerContext) -> bytes:
    model = worker.model(cohort.model)
    config = timm_config(model, cohort.model, worker.images.classes, worker.config.data)
    return (json.dumps(config, indent=2) + "\n").encode()


def _soup_file(order: BlendOrder, worker: WorkerContext) -> bytes:
    checkpoints = {checkpoint.name: checkpoint for checkpoint in order.ingredients}
    mix = order.soup.mix
    soup = SoupFile(
        id=order.name,
        recipe=order.recipe,
        cohort=order.cohort,
        batchnorm_samples=worker.config.batchnorm_samples,
        mix=mix,
        members=tuple(Member(name=name, sha256=checkpoints[name].sha256) for name in mix.names),
        metric=worker.config.metric,
        score=order.soup.score,
        decisions=order.soup.decisions,
    )
    return (soup.model_dump_json(indent=2) + "\n").encode()
