"""What an experiment means, worked out: its runs, their lengths, cohorts and bases.

Everything here follows from the configuration and the preflight of preflight alone; nothing changes
while the experiment runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orchestrator.config import Experiment
from orchestrator.config.sections import MEANS, RecipeConfig
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig
from workers.types import (
    Cohort,
    PreflightResult,
    RunSpec,
    digest,
    dump_without_defaults,
    ema_id,
    model_key,
    run_id_of,
)


@dataclass(frozen=True)
class BasePlan:
    """fresh base -> (probe) -> (trunk) -> final base; without stages the fresh one is final."""

    model: ModelConfig
    fresh: str
    stages: tuple[RunSpec, ...]
    final: str


@dataclass(frozen=True)
class SoupRecipe:
    """An entry of soup.recipes."""

    label: str
    """Tells it from the others."""
    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ExpandedExperiment:
    """An experiment with its runs expanded."""

    experiment: Experiment
    runs: tuple[RunSpec, ...]
    ranks: int

    @property
    def recipes(self) -> tuple[SoupRecipe, ...]:
        """The final soups, in configured order."""
        soup = self.experiment.soup
        return tuple(
            replace(_recipe(entry, soup.tie), label=label)
            for label, entry in zip(soup.labels, soup.recipes, strict=True)
        )

    @property
    def round_recipe(self) -> SoupRecipe:
        """What merges the members of a sync round; both names of the mean, and `pull`, which moves
        members towards it, are `uniform`."""
        entry = self.experiment.merge.method
        if entry.name in MEANS:
            entry = entry.model_copy(update={"name": "uniform"})
        return _recipe(entry, self.experiment.soup.tie)

    @property
    def is_sync(self) -> bool:
        """Whether runs are merged with one another while they train."""
        return self.experiment.merge.mode == "sync"

    @cached_property
    def variants(self) -> tuple[RunSpec, ...]:
        """Every run, and after it the moving average of its weights, if it keeps one."""
        return tuple(track for run in self.runs for track in run_and_ema(run))

    @cached_property
    def runs_with_ema(self) -> frozenset[str]:
        """Ids of the runs that keep a moving average."""
        return frozenset(run_id_of(track.id) for track in self.variants if track.role == "ema")


def run_and_ema(run: RunSpec) -> tuple[RunSpec, ...]:
    """The run, and what stands for the moving average of its weights: never ordered, but with
    checkpoints, scores and a row of its own."""
    decay = run.train.model_ema_decay
    if decay is None:
        return (run,)
    params = {**run.params, "ema": decay}
    average = {"id": ema_id(run.id), "role": "ema", "params": params}
    return run, run.model_copy(update=average)


@dataclass(frozen=True, eq=False)
class ResolvedExperiment:
    """An expanded experiment together with what preflight found."""

    expanded: ExpandedExperiment
    preflight: PreflightResult
    plans: tuple[BasePlan, ...]
    """One per distinct model, in order of first use."""
    cohorts: tuple[Cohort, ...]
    """Likewise."""
    members: Mapping[str, tuple[RunSpec, ...]]
    """The runs, by cohort id."""
    plan_of: Mapping[str, BasePlan]
    """By run id."""
    cohort_of: Mapping[str, Cohort]
    """By run id."""
    num_steps: Mapping[str, int]
    """Optimizer steps to the last epoch's end by run id, stages of the bases included."""
    num_images: Mapping[str, int]
    """Training images that a run learns from, likewise."""

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that are scored: selection first, then the report splits."""
        return tuple(name for name in self.preflight.splits if name != "train")

    @cached_property
    def report_splits(self) -> tuple[str, ...]:
        return self.splits[1:]

    @cached_property
    def variants(self) -> Mapping[str, tuple[RunSpec, ...]]:
        """The runs and their moving averages, by cohort id: whose checkpoints may be mixed."""
        return {
            cohort: tuple(track for run in runs for track in run_and_ema(run))
            for cohort, runs in self.members.items()
        }

    @cached_property
    def run_of(self) -> Mapping[str, RunSpec]:
        """The run itself by its id and by that of its moving average."""
        runs = (run for members in self.members.values() for run in members)
        return {track.id: run for run in runs for track in run_and_ema(run)}

    @cached_property
    def cohort_names(self) -> Mapping[str, str]:
        """What people call each cohort: its model, and what else tells it from the others."""
        said = {cohort.id: _with_head(cohort.model) for cohort in self.cohorts}
        names = list(said.values())
        return {
            id_: name if names.count(name) == 1 else f"{name} {id_}" for id_, name in said.items()
        }

    @cached_property
    def steps_per_epoch(self) -> Mapping[str, int]:
        """By run id."""
        runs = (run for members in self.members.values() for run in members)
        return {run.id: self.num_steps[run.id] // run.train.epochs for run in runs}

    @cached_property
    def shortest_epoch(self) -> Mapping[str, int]:
        """By cohort id: steps per epoch of its shortest run."""
        shortest = {
            cohort: min(runs, key=lambda run: self.num_steps[run.id])
            for cohort, runs in self.members.items()
        }
        return {cohort: self.steps_per_epoch[run.id] for cohort, run in shortest.items()}


def _with_head(model: ModelConfig) -> str:
    return model.name if model.head == "linear" else f"{model.name} {model.head} head"


def distinct_models(runs: tuple[RunSpec, ...]) -> dict[str, ModelConfig]:
    """By digest, in order of first use."""
    return {model_key(run.model): run.model for run in runs}


def resolve(expanded: ExpandedExperiment, preflight: PreflightResult) -> ResolvedExperiment:
    """Work out runs, cohorts and bases from what preflight found."""
    models = distinct_models(expanded.runs)
    plans = {key: _base_plan(expanded, key, model, preflight) for key, model in models.items()}
    cohorts = {key: _cohort(expanded, key, plan, preflight) for key, plan in plans.items()}
    key_of = {run.id: model_key(run.model) for run in expanded.runs}
    stages = [stage for plan in plans.values() for stage in plan.stages]
    num_images = {run.id: _num_images(preflight, run) for run in (*expanded.runs, *stages)}
    return ResolvedExperiment(
        expanded=expanded,
        preflight=preflight,
        plans=tuple(plans.values()),
        cohorts=tuple(cohorts.values()),
        members={
            cohort.id: tuple(run for run in expanded.runs if key_of[run.id] == key)
            for key, cohort in cohorts.items()
        },
        plan_of={run: plans[key] for run, key in key_of.items()},
        cohort_of={run: cohorts[key] for run, key in key_of.items()},
        num_steps={
            run.id: run.train.epochs * run.train.steps_per_epoch(num_images[run.id], expanded.ranks)
            for run in (*expanded.runs, *stages)
        },
        num_images=num_images,
    )


def _num_images(preflight: PreflightResult, run: RunSpec) -> int:
    held_out = 0 if run.fold is None else preflight.folds[run.fold]
    return preflight.splits["train"].count - held_out


def _base_plan(
    expanded: ExpandedExperiment, key: str, model: ModelConfig, preflight: PreflightResult
) -> BasePlan:
    """Names are hashes of everything that shapes the bytes."""
    experiment = expanded.experiment
    preprocessing = preflight.models[key].preprocessing
    fresh = digest(
        [
            experiment.seed,
            dump_without_defaults(model),
            preflight.models[key].weights,
            experiment.base.init,
            preflight.classes,
            preprocessing,
        ],
        12,
    )
    stages = _stages(expanded, model, fresh)
    made_by = [dump_without_defaults(stage) for stage in stages]
    train = preflight.splits["train"].fingerprint
    final = digest([fresh, made_by, train, expanded.ranks], 12) if stages else fresh
    return BasePlan(model, f"base/{fresh}", stages, f"base/{final}")


def _stages(expanded: ExpandedExperiment, model: ModelConfig, fresh: str) -> tuple[RunSpec, ...]:
    """The probe and the trunk train with the experiment's own settings, not a run's."""
    base, train = expanded.experiment.base, expanded.experiment.train
    lengths = {"probe": base.probe_epochs, "trunk": base.trunk_epochs}
    return tuple(
        RunSpec(id=f"{role}-{fresh[:8]}", role=role, model=model, train=stage_train(train, epochs))
        for role, epochs in lengths.items()
        if epochs
    )


def stage_train(train: TrainConfig, epochs: int) -> TrainConfig:
    """Settings of a stage: those of the experiment without what judges, parts or averages a run.

    A stage runs to its last epoch and ends in the weights it has then, so it has no patience, no
    sections of unfreezing and no moving average; and as nothing judges it on the way, a plateau
    schedule stays at its first learning rate.
    """
    return train.model_copy(
        update={
            "epochs": epochs,
            "warmup_epochs": min(train.warmup_epochs, epochs - 1),
            "unfreeze": (),
            "patience": None,
            "model_ema_decay": None,
            "model_ema_warmup": False,
            "sched": "none" if train.sched == "plateau" else train.sched,
        }
    )


def _cohort(
    expanded: ExpandedExperiment, key: str, plan: BasePlan, preflight: PreflightResult
) -> Cohort:
    return Cohort(
        id=digest([plan.final, preflight.models[key].preprocessing, preflight.classes]),
        model=plan.model,
        base=plan.final,
        batchnorm=_batchnorm(expanded, plan.model, preflight.models[key].has_batchnorm),
    )


def _batchnorm(expanded: ExpandedExperiment, model: ModelConfig, has_batchnorm: bool) -> str:
    policy = expanded.experiment.soup.batchnorm
    if not has_batchnorm:
        return "none"
    if policy not in ("auto", "compare"):
        return policy
    frozen = all(run.train.bn_freeze for run in expanded.runs if run.model == model)
    return "frozen" if frozen else "recompute"


def _recipe(entry: RecipeConfig, tie: str) -> SoupRecipe:
    return SoupRecipe(label=entry.label, name=entry.name, options=entry.options_under(tie))
