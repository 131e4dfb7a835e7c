"""What an experiment means, worked out: its runs, their lengths, cohorts and bases.

Everything here follows from the configuration and the facts of preflight alone; nothing changes
while the experiment runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from orchestrator.config import Experiment, RecipeSpec
from workers.spec import ModelSpec
from workers.types import AnyOrder, Cohort, Facts, RunSpec, digest, model_key


@dataclass(frozen=True)
class BasePlan:
    """fresh base -> (probe) -> (trunk) -> final base; without stages the fresh one is final."""

    model: ModelSpec
    fresh: str
    stages: tuple[RunSpec, ...]
    final: str


@dataclass(frozen=True)
class Recipe:
    """An entry of soup.recipes."""

    label: str
    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Program:
    """An experiment with its runs expanded."""

    experiment: Experiment
    runs: tuple[RunSpec, ...]
    ranks: int

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The final soups, in configured order."""
        tie = self.experiment.soup.tie
        return tuple(_recipe(entry, tie) for entry in self.experiment.soup.recipes)


@dataclass(frozen=True, eq=False)
class Resolved:
    """A program together with what preflight found."""

    facts: Facts
    plans: tuple[BasePlan, ...]
    """One per distinct model, in order of first use."""
    cohorts: tuple[Cohort, ...]
    """Likewise."""
    members: Mapping[str, tuple[RunSpec, ...]]
    """By cohort id."""
    plan_of: Mapping[str, BasePlan]
    """By run id."""
    cohort_of: Mapping[str, Cohort]
    """By run id."""
    num_steps: Mapping[str, int]
    """By run id, stages of the bases included."""
    orders: dict[str, AnyOrder] = field(default_factory=dict)
    """The last order made of each kind and run: made anew only when it would be another one."""

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that are scored: selection first, then the report splits."""
        return tuple(name for name in self.facts.splits if name != "train")

    @cached_property
    def report_splits(self) -> tuple[str, ...]:
        return self.splits[1:]


class _Identity:
    """A cache key that is the object itself: comparing facts by value is slow."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def __hash__(self) -> int:
        return id(self.facts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.facts is self.facts


def resolve(program: Program, facts: Facts) -> Resolved:
    """Worked out once per program and facts."""
    return _resolve(program, _Identity(facts))


def distinct_models(runs: tuple[RunSpec, ...]) -> dict[str, ModelSpec]:
    """By digest, in order of first use."""
    return {model_key(run.model): run.model for run in runs}


@lru_cache(maxsize=4)
def _resolve(program: Program, identity: _Identity) -> Resolved:
    facts = identity.facts
    models = distinct_models(program.runs)
    plans = {key: _base_plan(program, key, model, facts) for key, model in models.items()}
    cohorts = {key: _cohort(program, key, plan, facts) for key, plan in plans.items()}
    key_of = {run.id: model_key(run.model) for run in program.runs}
    stages = [stage for plan in plans.values() for stage in plan.stages]
    num_train = facts.splits["train"].count
    return Resolved(
        facts=facts,
        plans=tuple(plans.values()),
        cohorts=tuple(cohorts.values()),
        members={
            cohort.id: tuple(run for run in program.runs if key_of[run.id] == key)
            for key, cohort in cohorts.items()
        },
        plan_of={run: plans[key] for run, key in key_of.items()},
        cohort_of={run: cohorts[key] for run, key in key_of.items()},
        num_steps={
            run.id: run.train.epochs * run.train.steps_per_epoch(num_train, program.ranks)
            for run in (*program.runs, *stages)
        },
    )


def _base_plan(program: Program, key: str, model: ModelSpec, facts: Facts) -> BasePlan:
    """Names are hashes of everything that shapes the bytes."""
    experiment = program.experiment
    preprocessing = facts.models[key].preprocessing
    fresh = digest(
        [
            experiment.seed,
            model.model_dump(),
            facts.models[key].weights,
            experiment.base.init,
            facts.classes,
            preprocessing,
        ],
        12,
    )
    stages = _stages(program, model, fresh)
    made_by = [stage.model_dump() for stage in stages]
    train = facts.splits["train"].fingerprint
    final = digest([fresh, made_by, train, program.ranks], 12) if stages else fresh
    return BasePlan(model, f"base/{fresh}", stages, f"base/{final}")


def _stages(program: Program, model: ModelSpec, fresh: str) -> tuple[RunSpec, ...]:
    """The probe and the trunk train with the experiment's own settings, not a run's."""
    base, train = program.experiment.base, program.experiment.train
    lengths = {"probe": base.probe_epochs, "trunk": base.trunk_epochs}
    return tuple(
        RunSpec(
            id=f"{role}-{fresh[:8]}",
            role=role,
            model=model,
            train=train.model_copy(
                update={"epochs": epochs, "warmup_epochs": min(train.warmup_epochs, epochs - 1)}
            ),
        )
        for role, epochs in lengths.items()
        if epochs
    )


def _cohort(program: Program, key: str, plan: BasePlan, facts: Facts) -> Cohort:
    return Cohort(
        id=digest([plan.final, facts.models[key].preprocessing, facts.classes]),
        model=plan.model,
        base=plan.final,
        batchnorm=_batchnorm(program, plan.model, facts.models[key].has_batchnorm),
    )


def _batchnorm(program: Program, model: ModelSpec, has_batchnorm: bool) -> str:
    policy = program.experiment.soup.batchnorm
    if not has_batchnorm:
        return "none"
    if policy != "auto":
        return policy
    frozen = all(run.train.bn_freeze for run in program.runs if run.model == model)
    return "frozen" if frozen else "recompute"


TIED = frozenset({"greedy"})
"""Recipes whose acceptance obeys soup.tie."""


def _recipe(entry: RecipeSpec, tie: str) -> Recipe:
    options = dict(entry.options)
    if entry.name in TIED:
        options = {"tie": tie, **options}
    label = entry.name.rpartition(":")[2]
    return Recipe(label=label, name=entry.name, options=options)
