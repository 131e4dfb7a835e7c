"""The Experiment: one frozen value that says everything a fleet is asked to do.

    configs/x.yaml + k=v overrides -> document -> Experiment -> sweep.expand -> runs

A YAML path is a field path is an override path. Keys are spelled as in timm where timm has the
flag, as in torchvision otherwise; the sections a worker reads live in `workers.config`.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, model_validator

from orchestrator.config import path_settings, yaml_document
from orchestrator.config.error_messages import config_error
from orchestrator.config.sections import (
    Axis,
    EnsembleConfig,
    FleetConfig,
    MergeConfig,
    RecipeConfig,
    SoupConfig,
    SweepConfig,
)
from workers.config import Section
from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.errors import UserError
from workers.types import WorkerConfig

__all__ = [
    "Axis",
    "EnsembleConfig",
    "Experiment",
    "FleetConfig",
    "MergeConfig",
    "RecipeConfig",
    "SoupConfig",
    "SweepConfig",
    "dump",
    "load",
    "num_ranks",
    "read",
    "worker_config",
    "uri",
]


def _plain_folder_name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"got {value!r}; write a plain folder name of letters, digits, '.', '_' and '-'"
        )
    return value


class Experiment(Section):
    """Everything a fleet is asked to do. Validated once, at load, then trusted."""

    name: Annotated[str, BeforeValidator(_plain_folder_name)]
    """Folder in the storage; the stem of the file when absent there."""
    storage: str = "./runs"
    """Folder or pyarrow.fs URI that experiments lie in."""
    seed: int = 0
    """Of splits, shared heads, random sweeps, data order and augmentation."""
    data: DataConfig = DataConfig()
    model: ModelConfig
    base: BaseConfig = BaseConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    fleet: FleetConfig = FleetConfig()
    merge: MergeConfig = MergeConfig()
    soup: SoupConfig = SoupConfig()
    ensemble: EnsembleConfig = EnsembleConfig()

    @model_validator(mode="after")
    def _folds_have_a_fresh_base(self) -> "Experiment":
        stages = {"probe_epochs": self.base.probe_epochs, "trunk_epochs": self.base.trunk_epochs}
        for key, epochs in stages.items():
            if self.data.folds is not None and epochs:
                raise ValueError(
                    f"base.{key} is {epochs} with data.folds: {self.data.folds}; set it to 0, for "
                    "a common start would have learned from the images that each fold holds out"
                )
        return self


def load(path: str | Path, overrides: Sequence[str] = (), **cli: Any) -> Experiment:
    """The experiment of a file, changed by `dotted.key=value` overrides and command-line options.

    An option that is None was not given. Raises UserError for anything a user can mend.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error}); give the path of a YAML file") from error
    tree = yaml_document.override(yaml_document.parse(text, str(path)), overrides)
    tree |= {key: value for key, value in cli.items() if value is not None}
    tree = {"name": file.stem, "model": {}} | _without_empty_sections(tree)
    experiment = _validated(path_settings.resolved(tree, str(path)), str(path))
    _refuse_missing_root(experiment, text, str(path))
    return experiment


def read(text: str, source: str) -> Experiment:
    """The experiment that `dump` wrote."""
    return _validated(yaml_document.parse(text, source), source)


def dump(experiment: Experiment, named_only: bool = False) -> str:
    """The resolved configuration as YAML; loads to an equal experiment.

    Defaults are included, unless `named_only`: then only keys that the file or an override names.
    """
    return yaml_document.render(experiment.model_dump(mode="json", exclude_unset=named_only))


def uri(experiment: Experiment) -> str:
    """Where the experiment lies: `<storage>/<name>`; a URI keeps its `?query`."""
    storage = experiment.storage
    if "://" not in storage:
        return str(Path(storage).expanduser().absolute() / experiment.name)
    place, question, query = storage.partition("?")
    return f"{place.rstrip('/')}/{experiment.name}{question}{query}"


def num_ranks(experiment: Experiment) -> int:
    """Processes that train one run together: one per GPU, or as many gloo ranks on CPUs."""
    return max(1, int(experiment.fleet.gpus_per_run))


def worker_config(experiment: Experiment, device: Literal["cpu", "cuda"]) -> WorkerConfig:
    """What every order of the experiment has in common."""
    return WorkerConfig(
        uri=uri(experiment),
        seed=experiment.seed,
        data=experiment.data,
        base=experiment.base,
        metric=experiment.soup.metric,
        batchnorm_samples=experiment.soup.batchnorm_samples,
        ranks=num_ranks(experiment),
        threads=experiment.fleet.cpus_per_run,
        device=device,
    )


def _without_empty_sections(tree: dict[str, Any]) -> dict[str, Any]:
    """A section whose keys are all commented out reads as null; it means the defaults."""
    known = Experiment.model_fields
    return {key: value for key, value in tree.items() if value is not None or key not in known}


def _validated(tree: dict[str, Any], source: str) -> Experiment:
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise config_error(error, Experiment, tree, source) from error
    for path, number in infinite(experiment.model_dump()):
        raise UserError(f"{source}: {path} is {number}; write a finite number")
    for path in _truths_for_numbers(tree, experiment.model_dump()):
        raise UserError(f"{source}: {path} is true or false; write a number")
    return experiment


def _truths_for_numbers(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Dotted paths where true or false was read as 1 or 0."""
    if isinstance(written, bool) and not isinstance(read, bool):
        yield path
    elif isinstance(written, dict) and isinstance(read, dict):
        for key in written.keys() & read.keys():
            yield from _truths_for_numbers(written[key], read[key], f"{path}.{key}".strip("."))


def infinite(value: Any, path: str = "") -> list[tuple[str, float]]:
    """Dotted paths of the numbers that are not finite."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
        return [found for key, inner in items for found in infinite(inner, key)]
    if isinstance(value, (list, tuple)):
        return [found for inner in value for found in infinite(inner, path)]
    return [(path, value)] if isinstance(value, float) and not math.isfinite(value) else []


def _refuse_missing_root(experiment: Experiment, text: str, source: str) -> None:
    """A file without a root may say in a comment where its images are published."""
    if experiment.data.source != "folder" or experiment.data.root is not None:
        return
    comments = [line.strip("# ") for line in text.splitlines() if line.lstrip().startswith("#")]
    published = [line for line in comments if "published" in line.lower()]
    where = f" ({published[0].rstrip('.')})" if published else ""
    raise UserError(
        f"{source}: data.root is missing; pass data.root=FOLDER with the images{where}, or "
        "data.source=digits for the bundled digits"
    )
