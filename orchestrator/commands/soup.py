"""The verb `soup`: soups of checkpoints that were trained elsewhere.

    files -> an experiment whose runs import those files instead of training -> run_experiment
          -> OUT: results.json, report.html, and the served soup in a layout that plain timm loads

Orders, recipes, tables and ledger are those of any experiment. The same command again continues.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import config
from orchestrator.commands import run
from orchestrator.commands.run import Options, RunOutcome
from orchestrator.config import Experiment, yaml_document
from orchestrator.driver.contents import read_experiment
from orchestrator.experiment.identity import config_differences, with_stored_values
from workers.errors import UserError
from workers.models.model_files import ModelFile, config_of, weights_file
from workers.recipes import RECIPES, needs_base
from workers.storage.layout import SERVED, STORE_ENTRIES
from workers.storage.local_disk import expanded, hash_file
from workers.storage.store import Store

POLICIES_WITHOUT_IMAGES = frozenset({"best", "average", "frozen"})
"""Values of soup.batchnorm for which no training image is needed."""

SPLIT_FOLDERS = {"val", "test"}
"""Subfolders of --data that hold its splits."""


@dataclass(frozen=True)
class SoupRequest:
    """The command line of `soupfleet soup`. Each field is the option of that name."""

    checkpoints: tuple[str, ...]
    model: str
    data: str
    recipe: str
    out: str
    base: str | None = None
    train: str | None = None
    seed: int = 0
    ema: bool = False
    image_size: int | None = None
    kwargs: str | None = None
    batchnorm: str = "auto"
    metric: str = "top1"
    threads: int = 1


def make_soups(request: SoupRequest, plain: bool | None = None) -> RunOutcome:
    """Make the soups and put the best one into OUT.

    Raises:
        UserError: a mistake that the user can mend; a new OUT is then removed.
    """
    experiment = experiment_of(request)
    _refuse_other_contents(experiment, request)
    _require_batchnorm_images(experiment)
    outcome = run.run_experiment(experiment, Options(fleet="local", plain=plain))
    if outcome.moment.state.served is not None and outcome.moment.state.served.soup is not None:
        _serve(Store(config.uri(experiment)))
    return outcome


def experiment_of(request: SoupRequest) -> Experiment:
    """The experiment of a fleet that trained these checkpoints."""
    files = _files(request.checkpoints)
    configs = {file: found for file in files if (found := config_of(file)) is not None}
    model_file = _common_config(configs)
    out = expanded(request.out).absolute()
    ema = {"train.weights_ema": True} if request.ema else {}
    tree = {
        "name": out.name,
        "storage": str(out.parent),
        "seed": request.seed,
        "data": _data(request, model_file),
        "model": _model(request, model_file),
        "base": {"init": "checkpoint" if request.base else "none"},
        "train": {"epochs": 1},
        "sweep": {"runs": [{"train.weights": str(file), **ema} for file in files]},
        "fleet": {"cpus_per_run": request.threads},
        "merge": {"mode": "off"},
        "soup": {
            "recipes": _recipes(request),
            "batchnorm": request.batchnorm,
            "metric": request.metric,
            "ingredients": "last",
        },
    }
    experiment = config.read(yaml_document.render(tree), "soupfleet soup")
    config.import_recipes(experiment)
    return experiment


def _files(checkpoints: tuple[str, ...]) -> list[Path]:
    files = [weights_file(path) for path in checkpoints]
    for file in files:
        if not file.is_file():
            raise UserError(f"checkpoint {file} does not exist; give files of weights")
    _refuse_duplicates(files)
    if len(files) < 2:
        raise UserError(f"{files[0]} is the only checkpoint; give at least two to mix")
    return files


def _refuse_duplicates(files: list[Path]) -> None:
    """Refuse identical files. timm saves the best and the last checkpoint twice; they would weigh
    double."""
    sizes = Counter(file.stat().st_size for file in files)
    by_hash: dict[str, Path] = {}
    for file in files:
        if sizes[file.stat().st_size] > 1:
            first = by_hash.setdefault(hash_file(file), file)
            if first is not file:
                raise UserError(f"{first} and {file} are the same checkpoint; name one of them")


def _common_config(configs: dict[Path, ModelFile]) -> ModelFile | None:
    """The common content of the config.json files beside the checkpoints. None: there are none."""
    if not configs:
        return None
    first, config = next(iter(configs.items()))
    for file, other in configs.items():
        for key in ("architecture", "label_names", "preprocessing"):
            one, two = getattr(config, key), getattr(other, key)
            if one and two and one != two:
                raise UserError(
                    f"{key} of {file} is {_shown(two)}, but {_shown(one)} of {first}; only "
                    f"checkpoints of the same {key} can be mixed"
                )
    labels = next((file.label_names for file in configs.values() if file.label_names), None)
    return config.model_copy(update={"label_names": labels})


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _data(request: SoupRequest, model_file: ModelFile | None) -> dict[str, Any]:
    """The section `data`: val/ and test/ of --data, or two stratified halves of its classes."""
    root = expanded(request.data).absolute()
    if not root.is_dir():
        raise UserError(f"--data {root} is not a folder; give a folder of val/ and test/")
    splits = {name for name in SPLIT_FOLDERS if (root / name).is_dir()}
    if splits and splits != SPLIT_FOLDERS:
        raise UserError(
            f"--data {root} has {min(splits)}/ without {min(SPLIT_FOLDERS - splits)}/; give it "
            "both, or only class folders, which are then halved"
        )
    halves = {"val": ".", "test_from": "val", "test_fraction": 0.5}
    data: dict[str, Any] = {"root": str(root), "train": {}, "image_size": request.image_size}
    data |= {"val": "val", "test": "test"} if splits else halves
    if request.train is not None:
        data["train"] = {"train": str(_folder("--train", request.train))}
    if model_file is not None and model_file.label_names:
        data["classes"] = list(model_file.label_names)
    return data


def _folder(option: str, path: str) -> Path:
    folder = expanded(path).absolute()
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder; give a folder of class folders")
    return folder


def _model(request: SoupRequest, model_file: ModelFile | None) -> dict[str, Any]:
    """The section `model`: --model, with the arguments and preprocessing of a config.json."""
    kwargs = yaml_document.parse(request.kwargs, "--kwargs") if request.kwargs else {}
    model: dict[str, Any] = {"name": request.model}
    if request.base is not None:
        model["checkpoint"] = str(weights_file(request.base))
    if model_file is None:
        return {**model, "kwargs": kwargs}
    args = dict(model_file.model_args)
    architecture = str(args.pop("backbone", model_file.architecture or request.model))
    if architecture.partition(".")[0] != request.model.partition(".")[0]:
        raise UserError(
            f"--model is {request.model}, but the config.json beside the checkpoints says "
            f"{architecture}; give --model {architecture}"
        )
    if "backbone" in model_file.model_args and model_file.architecture is not None:
        model["head"] = model_file.architecture.removeprefix("soupfleet_")
    preprocessing = model_file.preprocessing
    overlay = {"pretrained_cfg_overlay": preprocessing} if preprocessing else {}
    return {**model, "kwargs": {**args, **overlay, **kwargs}}


def _recipes(request: SoupRequest) -> list[Any]:
    """--recipe: `greedy,uniform`, `all`, or YAML with options, `{greedy: {tie: strict}}`."""
    if request.recipe.strip() == "all":
        return [name for name in RECIPES if request.base is not None or not needs_base(name)]
    recipes = yaml_document.parse(f"recipes: [{request.recipe}]", "--recipe")["recipes"]
    missing_base = [name for name in _names(recipes) if request.base is None and needs_base(name)]
    if missing_base:
        raise UserError(
            f"recipe {min(missing_base)} needs the weights that all checkpoints were fine-tuned "
            "from; give them with --base FILE, or leave the recipe out"
        )
    return list(recipes)


def _names(recipes: Iterable[Any]) -> Iterable[str]:
    for recipe in recipes:
        yield from recipe if isinstance(recipe, dict) else [str(recipe)]


def _refuse_other_contents(experiment: Experiment, request: SoupRequest) -> None:
    """Refuse an OUT that is neither new, nor empty, nor that of an earlier identical command."""
    store = Store(config.uri(experiment))
    stored = read_experiment(store)
    if stored is None:
        if set(store.entries()) - STORE_ENTRIES:
            raise UserError(f"--out {request.out} contains other files; give a new folder")
        return
    changes = config_differences(stored, with_stored_values(experiment, stored))
    if changes:
        raise UserError(
            f"--out {request.out} contains soups of another command ({'; '.join(changes[:3])}); "
            "give another folder"
        )


def _require_batchnorm_images(experiment: Experiment) -> None:
    if experiment.data.train or experiment.soup.batchnorm in POLICIES_WITHOUT_IMAGES:
        return
    from workers.models.build import create_model, has_batchnorm

    if has_batchnorm(create_model(experiment.model, num_classes=2, data=experiment.data)):
        raise UserError(
            f"{experiment.model.name} has BatchNorm, whose statistics must be recomputed on "
            "training images; give their class folders with --train DIR, or accept worse soups "
            "with --batchnorm average or --batchnorm best"
        )


def _serve(store: Store) -> None:
    """Copy the served soup into OUT itself."""
    for path in store.list(SERVED):
        store.put(store.fetch(path), path.removeprefix(f"{SERVED}/"))
