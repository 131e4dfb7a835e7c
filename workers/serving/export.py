"""Export: prepare a soup, with a README, for `soup/`, from where plain timm loads it."""

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from workers.context import WorkerContext
from workers.merging.write_soup import SOUP, SoupFile
from workers.models.model_files import MODEL_CONFIG
from workers.storage.layout import checkpoint_dir
from workers.storage.manifest import read_manifest, verify_files
from workers.text import markdown
from workers.types import AnyEvent, Served, ServeOrder

README = "README.md"


def serve(order: ServeOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Check the files of a soup and write its README beside them. The driver copies them to
    `soup/`, because a worker may outlive its driver.

    Every attempt writes the same README.
    """
    store, folder = worker.store, checkpoint_dir(order.soup.id)
    verify_files(store, order.soup.id)
    manifest = read_manifest(store, order.soup.id)
    assert manifest is not None, "its files were verified against it"
    soup = SoupFile.model_validate_json(store.read(f"{folder}/{SOUP}"))
    readme = _readme(soup, json.loads(store.read(f"{folder}/{MODEL_CONFIG}"))).encode()
    store.write(f"{folder}/{README}", readme)
    hashes = {name: file.sha256 for name, file in manifest.files.items()}
    yield Served(soup=order.soup.name, files=hashes | {README: sha256(readme).hexdigest()})


def _readme(soup: SoupFile, config: dict[str, Any]) -> str:
    """Text about loading the soup, its members with reasons, and its preprocessing."""
    preprocessing = config["pretrained_cfg"]
    score = "unknown" if soup.score is None else f"{soup.score:.4f}"
    rows = "\n".join(
        f"| {decision.candidate} | {'yes' if decision.accepted else 'no'} | {decision.reason} |"
        for decision in soup.decisions
    )
    return README_TEMPLATE.format(
        id=soup.id,
        recipe=soup.recipe,
        architecture=markdown(config["architecture"]),
        registers=REGISTERS if config["architecture"].startswith("soupfleet_") else "",
        num_members=len(soup.members),
        metric=soup.metric,
        score=score,
        rows=rows,
        classes=", ".join(map(markdown, config["label_names"])),
        input_size=preprocessing["input_size"],
        interpolation=preprocessing["interpolation"],
        crop_pct=preprocessing["crop_pct"],
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        batchnorm=soup.cohort.batchnorm,
    )


REGISTERS = "import workers.model  # of soupfleet: registers the architecture with timm\n"
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
