"""The Experiment: one frozen value with the whole configuration of a fleet.

    configs/x.yaml + k=v overrides -> document -> Experiment -> sweep.expand -> runs

The path of a key in YAML is also its path in the Experiment and in overrides. Names are timm's
where timm has the flag, torchvision's otherwise. Sections that a worker reads are in
`workers.config`.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, model_validator

from orchestrator.config import path_settings, secrets, yaml_document
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
from workers import recipes
from workers.config import Section
from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.errors import UserError
from workers.storage import local_disk
from workers.text import without_credentials
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
    "import_recipes",
    "load",
    "num_ranks",
    "public_dump",
    "shown_uri",
    "read",
    "worker_config",
    "uri",
]


MAX_FLOAT = 3.4e38
"""Largest number of a 32-bit float, in which models are trained."""


def _plain_folder_name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        raise ValueError(
            f"got {value!r}; write a plain folder name of letters, digits, '.', '_' and '-'"
        )
    return value


class Experiment(Section):
    """The whole configuration of a fleet. Validated once, when it is loaded."""

    name: Annotated[str, BeforeValidator(_plain_folder_name)]
    """Folder of the experiment in the storage. Absent in a file: the name of the file."""
    storage: str = "./runs"
    """Folder or pyarrow.fs URI of all experiments. May change at a restart."""
    seed: int = 0
    """Seed of splits, initial heads, random sweeps, data order and augmentation."""
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
                    f"base.{key} is {epochs} with data.folds: {self.data.folds}; set it to 0, "
                    "because the base would have seen the images that every fold holds out"
                )
        return self


def load(path: str | Path, overrides: Sequence[str] = (), **cli: Any) -> Experiment:
    """The experiment of a file, changed by `dotted.key=value` overrides and command-line options.

    An option that is None was not given.

    Raises:
        UserError: a mistake that the user can mend, as one sentence.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            text = opened.read(yaml_document.MAX_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); give the path of a YAML file") from error
    tree = yaml_document.override(yaml_document.parse(text, str(path)), overrides)
    tree |= {key: value for key, value in cli.items() if value is not None}
    tree = {"name": file.stem, "model": {}} | _without_empty_sections(tree)
    experiment = _validated(path_settings.resolved(tree, str(path)), str(path))
    import_recipes(experiment)
    _refuse_missing_root(experiment, text, str(path))
    return experiment


def import_recipes(experiment: Experiment) -> None:
    """Import the recipes that are given by path and check their options, after naming the modules
    on stderr.

    Raises:
        UserError: a module cannot be imported, or an option does not fit.
    """
    methods = [experiment.merge.method] if experiment.merge.mode != "off" else []
    foreign = [recipe for recipe in (*experiment.soup.recipes, *methods) if recipe.module]
    for module in sorted({recipe.module for recipe in foreign if recipe.module} - set(sys.modules)):
        print(f"Importing the recipe module {module}, which the config names.", file=sys.stderr)
    for recipe in foreign:
        recipes.load_recipe(recipe.name, recipe.options)


def read(text: str, source: str) -> Experiment:
    """The experiment in a text that `dump` wrote; `source` names it in errors. Recipes that are
    given by path are not imported."""
    return _validated(yaml_document.parse(text, source), source)


def dump(experiment: Experiment, named_only: bool = False) -> str:
    """The resolved configuration as YAML; loads to an equal experiment.

    Defaults are included, unless `named_only`: then only keys that the file or an override names.
    """
    return yaml_document.render(experiment.model_dump(mode="json", exclude_unset=named_only))


def public_dump(experiment: Experiment) -> str:
    """The resolved configuration as YAML for the store, without its secrets."""
    return yaml_document.render(secrets.public(experiment.model_dump(mode="json")))


def uri(experiment: Experiment) -> str:
    """URI of the experiment: `<storage>/<name>`. A `?query` of the storage is kept."""
    storage = experiment.storage
    if "://" not in storage:
        return str(local_disk.expanded(storage).absolute() / experiment.name)
    place, question, query = storage.partition("?")
    return f"{place.rstrip('/')}/{experiment.name}{question}{query}"


def shown_uri(experiment: Experiment) -> str:
    """URI of the experiment without credentials, to be shown."""
    return without_credentials(uri(experiment))


def num_ranks(experiment: Experiment) -> int:
    """Processes that train one run together: one per GPU, or as many gloo ranks on CPUs."""
    return max(1, int(experiment.fleet.gpus_per_run))


def worker_config(experiment: Experiment, device: Literal["cpu", "cuda"]) -> WorkerConfig:
    """The configuration that every worker of the experiment is built with."""
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
    """The document without sections that read as null because all their keys are comments."""
    fields = Experiment.model_fields
    return {key: value for key, value in tree.items() if value is not None or key not in fields}


def _validated(tree: dict[str, Any], source: str) -> Experiment:
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise config_error(error, Experiment, tree, source) from error
    for path, number in infinite(experiment.model_dump()):
        raise UserError(f"{source}: {path} is {number}; write a finite number, below {MAX_FLOAT:g}")
    for path in _booleans_as_numbers(tree, experiment.model_dump()):
        raise UserError(f"{source}: {path} is true or false; write a number")
    return experiment


def _booleans_as_numbers(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of keys where true or false was read as 1 or 0."""
    if isinstance(written, bool) and not isinstance(read, bool):
        yield path
    elif isinstance(written, dict) and isinstance(read, dict):
        for key in written.keys() & read.keys():
            yield from _booleans_as_numbers(written[key], read[key], f"{path}.{key}".strip("."))


def infinite(value: Any, path: str = "") -> list[tuple[str, float]]:
    """Dotted paths and values of all numbers that are not finite as 32-bit floats."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
        return [number for key, inner in items for number in infinite(inner, key)]
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in infinite(inner, path)]
    is_finite = not isinstance(value, float) or abs(value) <= MAX_FLOAT
    return [] if is_finite else [(path, value)]


def _refuse_missing_root(experiment: Experiment, text: str, source: str) -> None:
    """Refuse class folders without a root, with the comment that says where they are published."""
    if experiment.data.source != "folder" or experiment.data.root is not None:
        return
    comments = [line.strip("# ") for line in text.splitlines() if line.lstrip().startswith("#")]
    published = [line for line in comments if "published" in line.lower()]
    where = f" ({published[0].rstrip('.')})" if published else ""
    raise UserError(
        f"{source}: data.root is missing; pass data.root=FOLDER with the images{where}, or "
        "data.source=digits for the bundled digits"
    )
