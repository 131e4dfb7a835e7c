"""Checks of a configuration whose runs are merged with one another while they train."""

from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.config import Experiment
from workers.errors import UserError
from workers.types import RunSpec, model_key


def require_mergeable(experiment: Experiment, runs: Sequence[RunSpec]) -> None:
    """Refuse a configuration with merge.mode: sync whose rounds could not take place."""
    if experiment.merge.mode != "sync":
        return
    _require_training(runs)
    _require_a_round(experiment, runs)
    _require_quorum(experiment, runs)
    if experiment.merge.optimizer_state == "average":
        _require_one_optimizer(runs)


def _require_training(runs: Iterable[RunSpec]) -> None:
    for run in runs:
        if run.train.weights is not None:
            raise UserError(
                f"merge.mode: sync merges runs while they train, but run {run.id} imports "
                f"{run.train.weights} without training; set merge.mode=off"
            )


def _require_a_round(experiment: Experiment, runs: Sequence[RunSpec]) -> None:
    """Check a period in epochs. One in steps depends on the images, so preflight checks it."""
    every, longest = experiment.merge.every, max(run.train.epochs for run in runs)
    if isinstance(every, int) and every >= longest:
        raise UserError(
            f"merge.every is {every} epochs, but the longest run has {longest}, and runs must "
            "train on after a round; write a smaller number, or merge.mode=off"
        )


def _require_quorum(experiment: Experiment, runs: Sequence[RunSpec]) -> None:
    quorum = experiment.merge.quorum
    sizes = Counter((model_key(run.model), run.fold) for run in runs)
    (model, fold), size = min(sizes.items(), key=lambda item: item[1])
    if quorum is not None and quorum > size:
        name = next(run.model.name for run in runs if model_key(run.model) == model)
        group = name if fold is None else f"{name}, fold {fold},"
        raise UserError(
            f"merge.quorum is {quorum}, but only {size} runs of {group} are merged with one "
            f"another; write {size} or less"
        )


def _require_one_optimizer(runs: Sequence[RunSpec]) -> None:
    """Check that the optimizers of a model's runs keep the same tensors, which can be averaged."""
    firsts: dict[str, RunSpec] = {}
    for run in runs:
        first = firsts.setdefault(model_key(run.model), run)
        for key in ("opt", "unfreeze", "bn_freeze"):
            one, other = getattr(first.train, key), getattr(run.train, key)
            if one != other:
                raise UserError(
                    f"merge.optimizer_state: average needs one train.{key} for all runs of a "
                    f"model, got {one} in run {first.id} and {other} in run {run.id}; use keep or "
                    "reset"
                )
