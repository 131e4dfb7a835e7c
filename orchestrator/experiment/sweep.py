"""A sweep expands to the runs of the fleet.

    space x sampler -> settings (dotted path -> value) x seeds x folds -> RunSpec

The id of a run is the hash of its parameters, so a larger sweep contains the runs of a smaller one.
"""

import hashlib
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from orchestrator.config import Experiment, infinite
from orchestrator.config.error_messages import config_error, unknown_key
from orchestrator.config.sections import Axis, SweepConfig
from orchestrator.experiment.sync_checks import require_mergeable
from workers.config import Section
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig
from workers.errors import UserError
from workers.types import RunSpec, digest, dump_without_defaults

Params = dict[str, Any]
"""Dotted path -> value."""

MAX_REDRAWS = 100
"""Draws of one random run before the space counts as exhausted."""


class _Varied(Section):
    """The schema of the keys that a sweep may set."""

    model: ModelConfig
    train: TrainConfig
    seed: int


def expand(experiment: Experiment) -> tuple[RunSpec, ...]:
    """The runs, in order: a pure function of the experiment.

    Raises:
        UserError: a path that cannot vary, a value that its section refuses, or two equal settings
            outside `sweep.runs`; with the name of the axis.
    """
    runs: dict[str, RunSpec] = {}
    replicas: Counter[str] = Counter()
    for params, where in _seeded(experiment):
        spec = _resolved(experiment, params, where)
        same = digest(_hashed(spec), 64)
        if replicas[same] and experiment.sweep.sampler != "list":
            raise _twice(experiment, spec)
        for run in _folded(experiment, spec.model_copy(update={"replica": replicas[same]})):
            id = digest(_hashed(run))
            if id in runs:
                raise UserError(
                    f"two runs of the sweep have the same id {id} by chance; change the seed of "
                    "one of them, or ask for fewer runs"
                )
            runs[id] = run.model_copy(update={"id": id})
        replicas[same] += 1
    _require_snapshots(experiment, list(runs.values()))
    _require_training_images(experiment, runs.values())
    require_mergeable(experiment, list(runs.values()))
    return tuple(runs.values())


def _require_training_images(experiment: Experiment, runs: Iterable[RunSpec]) -> None:
    trained = sum(run.train.weights is None for run in runs)
    if trained and not experiment.data.train:
        raise UserError(
            f"data.train names no images, but {trained} run(s) need them for training; name the "
            "training images, or give every run a file of weights with train.weights"
        )
    if trained and experiment.base.init == "none":
        raise UserError(
            f"base.init is none, but {trained} run(s) start training from a base; write zero or "
            "timm"
        )


def _folded(experiment: Experiment, spec: RunSpec) -> Iterator[RunSpec]:
    """The run, or one run per fold, each without the training images of its fold."""
    if experiment.data.folds is None:
        yield spec
        return
    for fold in range(experiment.data.folds):
        yield spec.model_copy(update={"fold": fold, "params": {**spec.params, "fold": fold}})


def _require_snapshots(experiment: Experiment, runs: list[RunSpec]) -> None:
    """Check that some run has a checkpoint at the end of every epoch in soup.ingredients."""
    ingredients = experiment.soup.ingredients
    if isinstance(ingredients, str):
        return
    trains = {digest(dump_without_defaults(run.train)): run.train for run in runs}.values()
    for epoch in ingredients:
        if not any(_has_snapshot(train, epoch) for train in trains):
            raise UserError(
                f"soup.ingredients: no run has a checkpoint at the end of epoch {epoch}; runs have "
                f"{_lengths(trains)}: list other epochs, train longer, or change "
                "train.checkpoint_every"
            )


def _has_snapshot(train: TrainConfig, epoch: int) -> bool:
    """Whether a checkpoint at the end of this epoch is certain before the images are known."""
    every = train.checkpoint_every
    regular = isinstance(every, int) and epoch <= train.epochs and epoch % every == 0
    return regular or epoch == train.epochs


def _lengths(trains: Iterable[TrainConfig]) -> str:
    texts = {f"{t.epochs} epochs and checkpoint_every: {t.checkpoint_every}": None for t in trains}
    return " or ".join(list(texts)[:3]) + (" and so on" if len(texts) > 3 else "")


def _seeded(experiment: Experiment) -> Iterator[tuple[Params, str]]:
    """Every setting with every seed, and the key of the configuration to name in errors."""
    sweep = experiment.sweep
    for number, params in enumerate(_settings(sweep, experiment.seed)):
        where = f"sweep.runs.{number}" if sweep.sampler == "list" else "sweep.space"
        if sweep.seeds is None:
            yield params, where
            continue
        if "seed" in params:
            raise UserError(f"{where}.seed: sweep.seeds also sets the seed; keep one")
        for seed in sweep.seed_values:
            yield {**params, "seed": seed}, where


def _settings(sweep: SweepConfig, seed: int) -> Iterator[Params]:
    if sweep.sampler == "list":
        return (_flat(run) for run in sweep.runs)
    if sweep.sampler == "random":
        return _draws(sweep, seed)
    values = [axis.choice or () for axis in sweep.space.values()]
    rows = zip(*values, strict=True) if sweep.sampler == "zip" else itertools.product(*values)
    return (dict(zip(sweep.space, row, strict=True)) for row in rows)


def _flat(nested: dict[str, Any], prefix: str = "") -> Params:
    """Dotted paths of a setting written nested, dotted, or both."""
    flat: Params = {}
    for key, value in nested.items():
        inner = isinstance(value, dict) and bool(value)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def _draws(sweep: SweepConfig, seed: int) -> Iterator[Params]:
    """Random settings, all different. Draw i depends on the seed, i and the draws before it."""
    drawn: set[str] = set()
    for number in range(sweep.num_runs or 0):
        for redraw in range(MAX_REDRAWS):
            params = {
                path: _draw(axis, random.Random(_entropy([seed, number, redraw, path])).random())
                for path, axis in sweep.space.items()
            }
            key = json.dumps(params, sort_keys=True)
            if key not in drawn:
                break
        else:
            raise UserError(
                f"sweep.num_runs is {sweep.num_runs}, but the axes {', '.join(sweep.space)} gave "
                f"only {number} different settings; add values, use a range, or ask for fewer runs"
            )
        drawn.add(key)
        yield params


def _entropy(value: list[Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(value).encode()).digest()[:8], "big")


def _draw(axis: Axis, u: float) -> Any:
    """The value of the axis at u in [0, 1). Floats have six digits, which no libm computes
    differently."""
    if axis.choice is not None:
        return axis.choice[int(u * len(axis.choice))]
    if axis.int is not None:
        low, high = axis.int
        return low + math.floor(u * (high - low + 1))
    if axis.uniform is not None:
        a, b = axis.uniform
        return float(f"{a + u * (b - a):.6g}")
    assert axis.loguniform is not None
    a, b = map(math.log, axis.loguniform)
    return float(f"{math.exp(a + u * (b - a)):.6g}")


def _resolved(experiment: Experiment, params: Params, where: str) -> RunSpec:
    """The run with these parameters over the experiment's sections `model` and `train`."""
    tree: dict[str, Any] = {
        "model": experiment.model.model_dump(),
        "train": experiment.train.model_dump(),
        "seed": 0,
    }
    for path, value in params.items():
        steps = path.split(".")
        if steps[0] not in tree:
            raise _fixed(path, where)
        _set(tree, steps, value, f"{where}.{path}")
    try:
        varied = _Varied.model_validate(tree)
    except ValidationError as error:
        raise config_error(error, _Varied, tree, f"{where} ({_shown(params)})") from error
    for path, number in infinite(varied.model_dump()):
        raise UserError(f"{where}.{path} is {number}; write a finite number")
    return RunSpec(id="", params=params, seed=varied.seed, model=varied.model, train=varied.train)


def _fixed(path: str, where: str) -> UserError:
    if path.split(".")[0] not in Experiment.model_fields:
        return UserError(f"{where}.{path}: {unknown_key(path, _Varied)}")
    return UserError(
        f"{where}.{path}: {path} has one value in an experiment; a sweep can vary train.*, model.* "
        "and seed"
    )


def _set(tree: dict[str, Any], steps: list[str], value: Any, where: str) -> None:
    *parents, last = steps
    for step in parents:
        tree = tree.setdefault(step, {})
        if not isinstance(tree, dict):
            raise UserError(f"{where}: {step} is {tree!r}, which has no keys")
    tree[last] = value


def _hashed(spec: RunSpec) -> dict[str, Any]:
    """The parameters that identify a run. Defaults are left out: a later version may add keys."""
    hashed = {
        "model": dump_without_defaults(spec.model),
        "train": dump_without_defaults(spec.train),
        "seed": spec.seed,
        "replica": spec.replica,
    }
    return hashed if spec.fold is None else {**hashed, "fold": spec.fold}


def _twice(experiment: Experiment, spec: RunSpec) -> UserError:
    """The error for two equal settings; names the axis that repeats a value, if one does."""
    for path, axis in experiment.sweep.space.items():
        values = list(axis.choice or ())
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            return UserError(
                f"sweep.space.{path} has {repeated[0]!r} twice; remove one (to repeat a setting "
                "with other seeds, use sweep.seeds)"
            )
    return UserError(
        f"sweep.space makes the same run twice ({_shown(spec.params)}); remove one of the values "
        f"of {', '.join(experiment.sweep.space)} (to repeat a setting, use sweep.seeds)"
    )


def _shown(params: Params) -> str:
    return ", ".join(f"{path}={value}" for path, value in params.items()) or "no parameters"
