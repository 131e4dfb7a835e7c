"""Write a soup: blend what a recipe decided into a checkpoint of its own, and make it again.

    mix --mix_into--> warm model --> soups/<id>/{model.safetensors, config.json, soup.json}
                                                     |-- rebuild --> the same bytes, or corrupt

soup.json holds no times, attempts or places: the same experiment gives the same file anywhere.
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
    name: str
    sha256: str
    """Of its model.safetensors."""


class SoupFile(FrozenModel):
    """soup.json: how the soup was made, and all it takes to make it again."""

    schema_version: Literal[1] = 1
    id: str
    """`soup/<id>`."""
    recipe: str
    cohort: Cohort
    batchnorm_samples: int
    mix: Mix
    members: tuple[Member, ...]
    """In order of acceptance."""
    metric: Metric
    score: float | None
    """On the selection split, higher is better; None when the recipe did not learn it."""
    decisions: tuple[Decision, ...]


def blend_soup(order: BlendOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Write the soup as a complete checkpoint `soup/<id>`.

    It has no attempt: whoever writes it writes the same bytes. Memory is that of one model, its
    sources being mapped.
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


def rebuild(made: SoupFile, ingredients: tuple[Checkpoint, ...], worker: WorkerContext) -> str:
    """sha256 of the model.safetensors that this soup must have, made again from its members.

    Raises:
        CorruptFile: a member is missing, or is not the one that went into the soup.
    """
    places = {each.name: each for each in ingredients}
    for member in made.members:
        place = places.get(member.name)
        if place is None or place.sha256 != member.sha256:
            what = "is missing" if place is None else "has other weights now"
            raise CorruptFile(f"{made.id} cannot be made again: its member {member.name} {what}")
    worker.set_num_threads()  # an order would have; the number of threads is part of the bits
    sink = HashingSink()
    write_tensors(sink, _tensors(made.mix, made.cohort, ingredients, worker))
    return sink.sha256.hexdigest()


def _tensors(
    mix: Mix, cohort: Cohort, ingredients: tuple[Checkpoint, ...], worker: WorkerContext
) -> Mapping[str, Tensor]:
    """The state dict of the mix; views of the file where the mix is one checkpoint."""
    if mix.single is not None:
        (only,) = (each for each in ingredients if each.name == mix.single)
        return dict(blend(mix, {only.name: open_weights(worker.store, only)}))
    model = worker.model(cohort.model)
    load_mix(model, mix, cohort, ingredients, worker)
    tensors: dict[str, Tensor] = model.state_dict()
    return tensors


def _config(cohort: Cohort, worker: WorkerContext) -> bytes:
    model = worker.model(cohort.model)
    config = timm_config(model, cohort.model, worker.images.classes, worker.setting.data)
    return (json.dumps(config, indent=2) + "\n").encode()


def _soup_file(order: BlendOrder, worker: WorkerContext) -> bytes:
    places = {each.name: each for each in order.ingredients}
    mix = order.soup.mix
    made = SoupFile(
        id=order.name,
        recipe=order.recipe,
        cohort=order.cohort,
        batchnorm_samples=worker.setting.batchnorm_samples,
        mix=mix,
        members=tuple(Member(name=name, sha256=places[name].sha256) for name in mix.names),
        metric=worker.setting.metric,
        score=order.soup.score,
        decisions=order.soup.decisions,
    )
    return (made.model_dump_json(indent=2) + "\n").encode()
