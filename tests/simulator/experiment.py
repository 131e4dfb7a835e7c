"""The experiment of a simulated world, and what its preflight finds."""

import copy
from collections.abc import Iterable
from typing import Any

from orchestrator.config import Experiment
from orchestrator.experiment import sweep
from orchestrator.experiment.resolved import ExpandedExperiment, distinct_models
from orchestrator.state.reducers import apply
from orchestrator.state.state import State
from workers.types import AnyEvent, ModelInfo, PreflightResult, SplitInfo

COUNTS = {"train": 320, "val": 40, "test": 50, "ood:sketch": 30}
MODEL = {"name": "test_vit"}


def simulated(num_runs: int = 3, epochs: int = 2, **sections: dict[str, Any]) -> ExpandedExperiment:
    """`num_runs` seeds of one setting, ten steps per epoch."""
    tree: dict[str, Any] = {
        "name": "simulated",
        "data": {"source": "digits"},
        "model": MODEL,
        "sweep": {"seeds": num_runs},
        "fleet": {"grace_s": 0.0},
    }
    for section, value in sections.items():
        tree[section] = tree.get(section, {}) | value
    tree["train"] = {"epochs": epochs} | tree.get("train", {})
    experiment = Experiment.model_validate(tree)
    return ExpandedExperiment(experiment, sweep.expand(experiment), ranks=1)


def facts(expanded: ExpandedExperiment) -> PreflightResult:
    model = ModelInfo(
        num_parameters=1000,
        model_bytes=4000,
        checkpoint_bytes=12000,
        has_batchnorm=False,
        preprocessing={"input_size": [3, 32, 32]},
    )
    splits = {
        name: SplitInfo(count=count, fingerprint="f" * 64, class_counts=(count,))
        for name, count in COUNTS.items()
    }
    models = dict.fromkeys(distinct_models(expanded.runs), model)
    parts = expanded.experiment.data.folds or 0
    folds = tuple(len(range(part, COUNTS["train"], parts)) for part in range(parts))
    return PreflightResult(
        classes=("0", "1"), splits=splits, corrupt=(), models=models, folds=folds
    )


def then(state: State, events: Iterable[AnyEvent]) -> State:
    """A copy of the state after further events; the state itself stays as it is."""
    later = copy.deepcopy(state)
    for event in events:
        apply(later, event)
    return later
