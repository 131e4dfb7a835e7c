"""`soupfleet soup`: soups of checkpoints that somebody else trained.

    files -> an experiment whose runs are those files, taken in instead of trained -> session.run
          -> OUT: results.json, report.html, and the served soup where plain timm loads it

Everything else is what any experiment does: the same orders, recipes, tables and ledger, so the
same command goes on where it was stopped.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import config
from orchestrator.commands import run
from orchestrator.commands.run import Options, Outcome
from orchestrator.config import Experiment, yaml_document
from orchestrator.experiment.identity import differences
from workers.errors import UserError
from workers.models.model_files import ModelFile, config_of, weights_file
from workers.recipes import RECIPES, needs_base
from workers.storage.layout import SERVED
from workers.storage.local_disk import hash_file
from workers.storage.store import Store

POLICIES_WITHOUT_IMAGES = frozenset({"best", "average", "frozen"})
"""Values of soup.batchnorm for which no training image is needed."""

SPLIT_FOLDERS = {"val", "test"}
"""Folders of --data that make it a tree of splits."""


@dataclass(frozen=True)
class SoupRequest:
    """What the command line asks for."""

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


def soup(wish: SoupRequest, plain: bool | None = None) -> Outcome:
    """Make the soups and put the best one into OUT. Raises UserError for what the user must mend;
    then nothing is left in OUT."""
    experiment = experiment_of(wish)
    _refuse_other_contents(experiment, wish)
    _require_batchnorm_images(experiment)
    outcome = run.run(experiment, Options(fleet="local", plain=plain))
    if outcome.state.served is not None and outcome.state.served.soup is not None:
        _serve(Store(config.uri(experiment)))
    return outcome


def experiment_of(wish: SoupRequest) -> Experiment:
    """The experiment that a fleet would have been, had it trained these checkpoints."""
    files = _files(wish.checkpoints)
    known = _agreed({file: found for file in files if (found := config_of(file)) is not None})
    out = Path(wish.out).expanduser().absolute()
    taken_in = {"train.weights_ema": True} if wish.ema else {}
    tree = {
        "name": out.name,
        "storage": str(out.parent),
        "seed": wish.seed,
        "data": _data(wish, known),
        "model": _model(wish, known),
        "base": {"init": "checkpoint" if wish.base else "none"},
        "train": {"epochs": 1},
        "sweep": {"runs": [{"train.weights": str(file), **taken_in} for file in files]},
        "fleet": {"cpus_per_run": wish.threads},
        "merge": {"mode": "off"},
        "soup": {
            "recipes": _recipes(wish),
            "batchnorm": wish.batchnorm,
            "metric": wish.metric,
            "ingredients": "last",
        },
    }
    return config.read(yaml_document.render(tree), "soupfleet soup")


def _files(checkpoints: tuple[str, ...]) -> list[Path]:
    files = [weights_file(path) for path in checkpoints]
    for file in files:
        if not file.is_file():
            raise UserError(f"checkpoint {file} is not there; give files of weights")
    _refuse_twins(files)
    if len(files) < 2:
        raise UserError(
            f"{files[0]} is one checkpoint, and nothing can be mixed; give at least two"
        )
    return files


def _refuse_twins(files: list[Path]) -> None:
    """Train scripts keep copies of the best and the last checkpoint under other names."""
    sizes = Counter(file.stat().st_size for file in files)
    seen: dict[str, Path] = {}
    for file in files:
        if sizes[file.stat().st_size] > 1:
            twin = seen.setdefault(hash_file(file), file)
            if twin is not file:
                raise UserError(f"{twin} and {file} are the same checkpoint; name one of them")


def _agreed(known: dict[Path, ModelFile]) -> ModelFile | None:
    """What the config.json files beside the checkpoints say; they must say the same."""
    if not known:
        return None
    first, said = next(iter(known.items()))
    for file, other in known.items():
        for what in ("architecture", "label_names", "preprocessing"):
            one, two = getattr(said, what), getattr(other, what)
            if one and two and one != two:
                raise UserError(
                    f"{what} of {file} is {_shown(two)}, but {_shown(one)} of {first}; only "
                    f"checkpoints of the same {what} can be mixed"
                )
    labels = next((each.label_names for each in known.values() if each.label_names), None)
    return said.model_copy(update={"label_names": labels})


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _data(wish: SoupRequest, known: ModelFile | None) -> dict[str, Any]:
    """val/ and test/ of --data; else its class folders are halved, stratified and seeded."""
    root = Path(wish.data).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"--data {root} is not a folder; give a folder of val/ and test/")
    there = {name for name in SPLIT_FOLDERS if (root / name).is_dir()}
    if there and there != SPLIT_FOLDERS:
        raise UserError(
            f"--data {root} has {min(there)}/ without {min(SPLIT_FOLDERS - there)}/; give it both, "
            "or only class folders, which are then halved"
        )
    halved = {"val": ".", "test_from": "val", "test_fraction": 0.5}
    data: dict[str, Any] = {"root": str(root), "train": {}, "image_size": wish.image_size}
    data |= {"val": "val", "test": "test"} if there else halved
    if wish.train is not None:
        data["train"] = {"train": str(_folder("--train", wish.train))}
    if known is not None and known.label_names:
        data["classes"] = list(known.label_names)
    return data


def _folder(option: str, path: str) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder; give a folder of class folders")
    return folder


def _model(wish: SoupRequest, known: ModelFile | None) -> dict[str, Any]:
    """--model, with what the config.json beside a checkpoint says of arguments and pixels."""
    kwargs = yaml_document.parse(wish.kwargs, "--kwargs") if wish.kwargs else {}
    model: dict[str, Any] = {"name": wish.model}
    if wish.base is not None:
        model["checkpoint"] = str(weights_file(wish.base))
    if known is None:
        return {**model, "kwargs": kwargs}
    args = dict(known.model_args)
    architecture = str(args.pop("backbone", known.architecture or wish.model))
    if architecture.partition(".")[0] != wish.model.partition(".")[0]:
        raise UserError(
            f"--model is {wish.model}, but the config.json beside the checkpoints says "
            f"{architecture}; give --model {architecture}"
        )
    if "backbone" in known.model_args and known.architecture is not None:
        model["head"] = known.architecture.removeprefix("soupfleet_")
    overlay = {"pretrained_cfg_overlay": known.preprocessing} if known.preprocessing else {}
    return {**model, "kwargs": {**args, **overlay, **kwargs}}


def _recipes(wish: SoupRequest) -> list[Any]:
    """`greedy,uniform`, `all`, or with options, `{greedy: {tie: strict}}`, as in YAML."""
    if wish.recipe.strip() == "all":
        return [name for name in RECIPES if wish.base is not None or not needs_base(name)]
    recipes = yaml_document.parse(f"recipes: [{wish.recipe}]", "--recipe")["recipes"]
    missing_base = [name for name in _names(recipes) if wish.base is None and needs_base(name)]
    if missing_base:
        raise UserError(
            f"recipe {min(missing_base)} needs the weights that all checkpoints were fine-tuned "
            "from; give them with --base FILE, or leave the recipe out"
        )
    return list(recipes)


def _names(recipes: Iterable[Any]) -> Iterable[str]:
    for each in recipes:
        yield from each if isinstance(each, dict) else [str(each)]


def _refuse_other_contents(experiment: Experiment, wish: SoupRequest) -> None:
    """OUT is new, empty, or where this very command was stopped: nobody's files are touched."""
    store = Store(config.uri(experiment))
    known = run.read_experiment(store)
    if known is None and store.list():
        raise UserError(f"--out {wish.out} holds other files already; give a new folder")
    changes = differences(known, experiment) if known is not None else []
    if changes:
        raise UserError(
            f"--out {wish.out} holds soups made otherwise ({'; '.join(changes[:3])}); give another "
            "folder"
        )


def _require_batchnorm_images(experiment: Experiment) -> None:
    if experiment.data.train or experiment.soup.batchnorm in POLICIES_WITHOUT_IMAGES:
        return
    from workers.models.build import create_model, has_batchnorm

    if has_batchnorm(create_model(experiment.model, num_classes=2, data=experiment.data)):
        raise UserError(
            f"{experiment.model.name} has BatchNorm, whose statistics a soup must recompute on "
            "training images; give their class folders with --train DIR, or accept worse soups "
            "with --batchnorm average or --batchnorm best"
        )


def _serve(store: Store) -> None:
    """The served soup, in OUT itself as well."""
    for path in store.list(SERVED):
        store.put(store.fetch(path), path.removeprefix(f"{SERVED}/"))
