"""The config.json of a file of weights: architecture, preprocessing, label names. Torch-free.

model.safetensors  config.json      a folder that plain timm loads, such as a served soup
model.safetensors  manifest.json    a checkpoint of a run, whose base has the config.json
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.errors import UserError
from workers.storage.layout import MANIFEST, WEIGHTS
from workers.storage.local_disk import expanded

MODEL_CONFIG = "config.json"
PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


class ModelFile(BaseModel):
    """The keys of config.json that are used here."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    architecture: str | None = None
    label_names: tuple[str, ...] | None = None
    model_args: dict[str, Any] = {}
    pretrained_cfg: dict[str, Any] = {}

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {key: value for key, value in self.pretrained_cfg.items() if key in PREPROCESSING}


def weights_file(path: str) -> Path:
    """Absolute path of a file of weights, or of the weights in a folder of a checkpoint or soup."""
    place = expanded(path).absolute()
    if not place.is_dir():
        return place
    if not (place / WEIGHTS).is_file():
        raise UserError(
            f"checkpoint {place} is a folder without {WEIGHTS}; give a file of weights, or the "
            "folder of a checkpoint or soup"
        )
    return place / WEIGHTS


def config_of(file: Path) -> ModelFile | None:
    """The config.json of a file of weights. None: there is none."""
    place = next((place for place in _places(file) if place.is_file()), None)
    if place is None:
        return None
    try:
        return ModelFile.model_validate_json(place.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{place}, beside a checkpoint, is no configuration of a timm model ({where}: "
            f"{first['msg']}); correct it, or move it away"
        ) from error


def _places(file: Path) -> list[Path]:
    base = _base_name(file.parent / MANIFEST)
    places = [file.parent / MODEL_CONFIG]
    # <experiment>/runs/<run>/checkpoints/<step>/model.safetensors
    if base is not None and len(file.parents) > 4:
        places.append(file.parents[4] / base / MODEL_CONFIG)
    return places


def _base_name(manifest: Path) -> str | None:
    try:
        base = json.loads(manifest.read_bytes()).get("base")
    except (OSError, ValueError, AttributeError):
        return None
    return base if isinstance(base, str) else None
