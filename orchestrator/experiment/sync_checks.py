"""What a configuration must be for its runs to be merged with one another while they train."""

from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.config import Experiment
from workers.errors import UserError
from workers.types import RunSpec, model_key


def require_mergeable(experiment: Experiment, runs: Sequence[RunSpec]) -> None:
    """Raises UserError where merge.mode: sync cannot do what it is asked for."""
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
                f"merge.mode: sync merges runs while they train, but run {run.id} takes in "
                f"{run.train.weights} without training; set merge.mode=off"
            )


def _require_a_round(experiment: Experiment, runs: Sequence[RunSpec]) -> None:
    """A period in steps is compared with the images by preflight."""
    every, longest = experiment.merge.every, max(run.train.epochs for run in runs)
    if isinstance(every, int) and every >= longest:
        raise UserError(
            f"merge.every is {every} epochs, but the longest run has {longest}, and a round is for "
            "runs that go on after it; write a smaller number, or merge.mode=off"
        )


def _require_quorum(experiment: Experiment, runs: Sequence[RunSpec]) -> None:
    quorum = experiment.merge.quorum
    sizes = Counter((model_key(run.model), run.fold) for run in runs)
    (model, fold), least = min(sizes.items(), key=lambda each: each[1])
    if quorum is not None and quorum > least:
        name = next(run.model.name for run in runs if model_key(run.model) == model)
        whose = name if fold is None else f"{name}, fold {fold},"
        raise UserError(
            f"merge.quorum is {quorum}, but only {least} runs of {whose} are merged with one "
            f"another; write {least} or less"
        )


def _require_one_optimizer(runs: Sequence[RunSpec]) -> None:
    """States can be averaged where all keep the same tensors."""
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
