"""Soups: write what a recipe made as a checkpoint of its own, serve it, and make it again.

    mix --mix_into--> warm model --> soups/<id>/{model.safetensors, config.json, soup.json}
                                                     |-- serve --> soup/ for plain timm
                                                     |-- rebuild --> the same bytes, or a lie

soup.json holds no times, attempts or places: the same experiment gives the same file anywhere.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from workers.blend import blend
from workers.checkpoints import open_weights, write_checkpoint
from workers.model import timm_config
from workers.serialise import write_tensors
from workers.storage import SERVED, WEIGHTS, Bytes, CorruptFile, checkpoint_dir
from workers.tasting import mix_into
from workers.types import (
    AnyEvent,
    Blended,
    BlendOrder,
    Checkpoint,
    Cohort,
    Decision,
    Metric,
    Mix,
    Served,
    ServeOrder,
    Value,
)
from workers.worker import Worker

SOUP = "soup.json"
CONFIG = "config.json"
README = "README.md"


class Member(Value):
    name: str
    sha256: str
    """Of its model.safetensors."""


class SoupFile(Value):
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


def blend_soup(order: BlendOrder, attempt: int, worker: Worker) -> Iterator[AnyEvent]:
    """Write the soup as a complete checkpoint `soup/<id>`.

    It has no attempt: whoever writes it writes the same bytes. Memory is that of one model, its
    sources being mapped.
    """
    began = time.monotonic()
    files = {CONFIG: _config(order.cohort, worker), SOUP: _soup_file(order, worker)}
    tensors = _tensors(order.made.mix, order.cohort, order.ingredients, worker)
    checkpoint = write_checkpoint(
        worker.store,
        order.soup,
        None,
        0,
        tensors,
        base=order.cohort.base,
        extra_files=files,
    )
    yield Blended(checkpoint=checkpoint, busy_s=time.monotonic() - began)


def rebuild(made: SoupFile, ingredients: tuple[Checkpoint, ...], worker: Worker) -> str:
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
    worker.settle_torch()  # an order would have; the number of threads is part of the bits
    sink = _Hash()
    write_tensors(sink, _tensors(made.mix, made.cohort, ingredients, worker))
    return sink.sha256.hexdigest()


def serve(order: ServeOrder, attempt: int, worker: Worker) -> Iterator[AnyEvent]:
    """Copy a soup to `soup/`, where plain timm loads it, with a README of its own."""
    store, folder = worker.store, checkpoint_dir(order.soup.id)
    weights = store.fetch(f"{folder}/{WEIGHTS}", order.soup.sha256)
    config, made = store.read(f"{folder}/{CONFIG}"), store.read(f"{folder}/{SOUP}")
    store.put(weights, f"{SERVED}/{WEIGHTS}")
    store.write(f"{SERVED}/{CONFIG}", config)
    store.write(f"{SERVED}/{SOUP}", made)
    text = _readme(SoupFile.model_validate_json(made), json.loads(config))
    store.write(f"{SERVED}/{README}", text.encode())
    yield Served(soup=order.soup.name)


class _Hash:
    """A sink that keeps nothing but the hash."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: Bytes, /) -> None:
        self.sha256.update(data)


def _tensors(
    mix: Mix, cohort: Cohort, ingredients: tuple[Checkpoint, ...], worker: Worker
) -> Mapping[str, Tensor]:
    """The state dict of the mix; views of the file where the mix is one checkpoint."""
    if mix.single is not None:
        (only,) = (each for each in ingredients if each.name == mix.single)
        return dict(blend(mix, {only.name: open_weights(worker.store, only)}))
    model = worker.model(cohort.model)
    mix_into(model, mix, cohort, ingredients, worker)
    tensors: dict[str, Tensor] = model.state_dict()
    return tensors


def _config(cohort: Cohort, worker: Worker) -> bytes:
    model = worker.model(cohort.model)
    config = timm_config(model, cohort.model, worker.images.classes, worker.setting.data)
    return (json.dumps(config, indent=2) + "\n").encode()


def _soup_file(order: BlendOrder, worker: Worker) -> bytes:
    places = {each.name: each for each in order.ingredients}
    mix = order.made.mix
    made = SoupFile(
        id=order.soup,
        recipe=order.recipe,
        cohort=order.cohort,
        batchnorm_samples=worker.setting.batchnorm_samples,
        mix=mix,
        members=tuple(Member(name=name, sha256=places[name].sha256) for name in mix.names),
        metric=worker.setting.metric,
        score=order.made.score,
        decisions=order.made.decisions,
    )
    return (made.model_dump_json(indent=2) + "\n").encode()


def _readme(made: SoupFile, config: dict[str, Any]) -> str:
    """How to load the soup, what is in it and why, what it expects."""
    shown = config["pretrained_cfg"]
    score = "unknown" if made.score is None else f"{made.score:.4f}"
    rows = "\n".join(
        f"| {each.candidate} | {'yes' if each.accepted else 'no'} | {each.reason} |"
        for each in made.decisions
    )
    return README_TEMPLATE.format(
        id=made.id,
        recipe=made.recipe,
        architecture=config["architecture"],
        registers=REGISTERS if config["architecture"].startswith("soupfleet_") else "",
        num_members=len(made.members),
        metric=made.metric,
        score=score,
        rows=rows,
        classes=", ".join(config["label_names"]),
        input_size=shown["input_size"],
        interpolation=shown["interpolation"],
        crop_pct=shown["crop_pct"],
        mean=shown["mean"],
        std=shown["std"],
        batchnorm=made.cohort.batchnorm,
    )


REGISTERS = "import workers.model  # of soupfleet: tells timm about this architecture\n"
README_TEMPLATE = """\
# {id}: a model soup of {num_members} ({recipe}), {architecture}

```python
{registers}import timm, torch
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("local-dir:PATH_OF_THIS_FOLDER", pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model))
with torch.inference_mode():
    probabilities = model(transform(image.convert("RGB")).unsqueeze(0)).softmax(-1)[0]
label = model.pretrained_cfg["label_names"][int(probabilities.argmax())]
```

Selection score ({metric}, higher is better): {score}. It chose the soup, so it flatters it; scores
on splits that chose nothing are in `results.json` and `report.html` beside this folder.

| candidate | accepted | why |
|---|---|---|
{rows}

Classes, in the order of the outputs: {classes}

Preprocessing: input {input_size}, {interpolation} interpolation, crop {crop_pct}, mean {mean},
std {std}. BatchNorm statistics: {batchnorm}. `soup.json` holds the recipe, the mix and the hash of
every member.
"""
