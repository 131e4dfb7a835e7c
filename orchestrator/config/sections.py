"""Sections of the configuration that the driver reads: sweep, fleet, merge, soup, ensemble.

Those that a worker reads are in `workers.config`; `orchestrator.config` composes them all.
"""

import math
import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from workers import recipes
from workers.config import Section
from workers.config.train import period_steps
from workers.types import BatchNormPolicy, Metric, OptimizerState

MAX_SWEEP_RUNS = 20_000
"""Most runs that a sweep may have. The ids of more would be likely to collide."""

Whole = tuple[int, int]
"""An inclusive range of integers. It has a name because `Axis.int` hides the builtin."""


class Axis(Section):
    """The values of one key over the sweep: exactly one of the fields.

    `[a, b]` in YAML is short for `{choice: [a, b]}`.
    """

    choice: tuple[Any, ...] | None = None
    """A list of values. A grid and a zip take them in order; random draws one."""
    uniform: tuple[float, float] | None = None
    """Random numbers from [low, high)."""
    loguniform: tuple[float, float] | None = None
    """Random numbers from [low, high), uniform in the logarithm. low must be above 0."""
    int: Whole | None = None
    """Random whole numbers from [low, high], both included."""

    @model_validator(mode="before")
    @classmethod
    def _list_is_choice(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"choice": value}
        if not isinstance(value, (dict, Axis)):
            raise ValueError(
                f"got {value!r}; write a list of values, or one of {{choice: [...]}}, "
                "{uniform: [a, b]}, {loguniform: [a, b]}, {int: [a, b]}"
            )
        return value

    @model_validator(mode="after")
    def _one_of(self) -> "Axis":
        given = {key: value for key, value in self if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"got {', '.join(given) or 'none'} of choice, uniform, loguniform, int; give one"
            )
        kind, value = given.popitem()
        if kind == "choice" and not value:
            raise ValueError("got an empty list; give at least one value")
        if kind != "choice" and not value[0] < value[1]:
            raise ValueError(
                f"{kind} {list(value)} is not a range; write [low, high] with low < high"
            )
        if kind == "loguniform" and value[0] <= 0:
            raise ValueError(f"loguniform {list(value)} must start above 0")
        return self

    @model_serializer(mode="plain")
    def _as_written(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self
            if value is not None
        }


class SweepConfig(Section):
    """The runs of the fleet. Without this section there is one run."""

    sampler: Literal["grid", "random", "list", "zip"] = "grid"
    """How `space` becomes settings. `grid`: every combination, the last axis fastest. `zip`: the
    axes side by side. `random`: `num_runs` draws; more draws keep the earlier ones. `list`: `runs`
    as written."""
    num_runs: int | None = Field(default=None, ge=1)
    """Number of settings that sampler `random` draws. None: another sampler."""
    seeds: int | tuple[int, ...] | None = None
    """Seeds that every setting is trained with: a list, or a number N for 0..N-1. None: the seed of
    the setting, or 0."""
    space: dict[str, Axis] = {}
    """Axes: dotted path of `train.*`, `model.*` or `seed` -> its values."""
    runs: tuple[dict[str, Any], ...] = ()
    """Settings of sampler `list`, by dotted or nested path. Equal ones are trained once each."""

    @model_validator(mode="before")
    @classmethod
    def _runs_are_a_list(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("runs") and "sampler" not in value:
            return {**value, "sampler": "list"}
        return value

    @model_validator(mode="after")
    def _sampler_has_what_it_needs(self) -> "SweepConfig":
        if self.runs and self.sampler != "list":
            raise ValueError(f"runs need sampler: list, got {self.sampler}; remove one")
        if self.sampler == "list" and (self.space or not self.runs):
            raise ValueError("sampler: list needs runs and no space; write the settings into runs")
        if (self.sampler == "random") != (self.num_runs is not None):
            raise ValueError(
                f"num_runs is {self.num_runs} with sampler: {self.sampler}; set it for sampler: "
                "random and only there (to repeat a setting with other seeds, use seeds)"
            )
        if self.sampler in ("random", "zip") and not self.space:
            raise ValueError(f"sampler: {self.sampler} needs a space; add one, or use seeds: N")
        return self

    @model_validator(mode="after")
    def _axes_fit_the_sampler(self) -> "SweepConfig":
        if self.sampler == "random":
            return self
        lengths = {}
        for path, axis in self.space.items():
            if axis.choice is None:
                raise ValueError(
                    f"space.{path} is a range, which sampler: {self.sampler} cannot list; give "
                    "values, or use sampler: random"
                )
            lengths[path] = len(axis.choice)
        if self.sampler == "zip" and len(set(lengths.values())) > 1:
            raise ValueError(
                f"sampler: zip needs axes of equal length, got {lengths}; add or remove values"
            )
        return self

    @model_validator(mode="after")
    def _runs_are_countable(self) -> "SweepConfig":
        lengths = [len(axis.choice or ()) for axis in self.space.values()]
        settings = {"grid": math.prod(lengths), "random": self.num_runs or 0}.get(self.sampler, 1)
        seeds = self.seeds if isinstance(self.seeds, int) else len(self.seeds or (0,))
        if settings * seeds > MAX_SWEEP_RUNS:
            raise ValueError(
                f"{settings:,} settings with {seeds:,} seeds are more than {MAX_SWEEP_RUNS:,} "
                "runs; lower num_runs or seeds, or give the axes fewer values"
            )
        return self

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> "SweepConfig":
        if self.seeds is None:
            return self
        if not self.seed_values or len(set(self.seed_values)) != len(self.seed_values):
            raise ValueError(f"seeds is {self.seeds!r}; write a count, or a list of distinct seeds")
        if "seed" in self.space:
            raise ValueError("seeds and space.seed both set the seed; keep one")
        return self

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds as a list."""
        if self.seeds is None:
            return (0,)
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class FleetConfig(Section):
    """Resources per run, and limits on failures and time."""

    first_defaults: ClassVar[dict[str, Any]] = {"grace_s": 2}

    gpus_per_run: float = Field(default=1, gt=0)
    """GPUs of one run, each with a rank of its own. Below 1: a share of a GPU, for one rank. With
    `device: cpu` the number of ranks on CPUs. With `auto`, a single rank also trains on a cluster
    without GPUs."""
    cpus_per_run: int = Field(default=1, ge=1)
    """CPU cores and torch threads of one rank. On CPUs they affect the bytes of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that trains. `auto`: cuda if the cluster has GPUs, else cpu."""
    max_concurrent_runs: int | None = Field(default=None, ge=1)
    """Most runs at a time. None: as many as fit. May change at a restart."""
    max_failures: int = Field(default=3, ge=0)
    """Retries of an order per kind of failure: a lost or hanging worker, an error of the store, a
    corrupt checkpoint. After them the order is given up. May change at a restart."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours of wall-clock time after which training ends and soups are made of the committed
    checkpoints. None: no limit. May change at a restart."""
    heartbeat_s: float = Field(default=120, gt=0)
    """Seconds without progress after which a worker is considered hanging and replaced. May change
    at a restart."""
    grace_s: float | None = Field(default=None, ge=0)
    """Longest time in seconds that workers get to write a checkpoint before they are stopped. None:
    three times the slowest checkpoint so far, at least 10, and 60 before the first one. May change
    at a restart."""
    storage_patience: float = Field(default=12.0, gt=0)
    """Hours to wait for a store that fails, before its work is given up. May change at a
    restart."""
    env: dict[str, str] = {}
    """Environment variables of the workers. `${NAME}` is the value of NAME in the environment of
    the command. The store never holds other values: a restart takes them from its own
    configuration, or else from its environment. May change at a restart."""
    label_selector: dict[str, str] = {}
    """Labels that a Ray node must have to be used. Empty: all nodes."""

    @field_validator("gpus_per_run")
    @classmethod
    def _whole_or_a_share(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"got {value}; write a whole number, or a share below 1")
        return value


class RecipeConfig(Section):
    """A recipe and its options. YAML: `greedy`, or `{greedy: {option: value}}`."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, RecipeConfig) or (isinstance(value, dict) and "name" in value):
            return value
        if isinstance(value, dict) and len(value) == 1:
            name, options = next(iter(value.items()))
            return {"name": name, "options": options or {}}
        raise ValueError(f"got {value!r}; write a recipe's name, or {{name: {{option: value}}}}")

    @model_validator(mode="after")
    def _is_known(self) -> "RecipeConfig":
        if self.module is None:
            recipes.load_recipe(self.name, self.options)
        recipes.require_name(self.name)
        return self

    @property
    def module(self) -> str | None:
        """The module of a recipe by path, which reading a configuration does not import. None: a
        recipe of the table."""
        return recipes.module_of(self.name)

    @property
    def label(self) -> str:
        """Its name in tables: of a dotted path, only the class."""
        return self.name.rpartition(":")[2]

    def options_under(self, tie: str) -> dict[str, Any]:
        """The options, with soup.tie for a recipe that has an option `tie` and no value for it."""
        return {**recipes.tie_option(self.name, tie), **self.options}

    @model_serializer(mode="plain")
    def _as_written(self) -> str | dict[str, Any]:
        return {self.name: self.options} if self.options else self.name


PULL = "pull"
MEANS = frozenset({PULL, "mean"})
"""Methods of `merge.method` that are not recipes; both use the plain mean."""
LEAST_PULL_STEPS = 100
"""Least steps between pulls, because the weights of every member pass through the store."""


class MethodConfig(RecipeConfig):
    """A recipe, or one of MEANS."""

    @model_validator(mode="after")
    def _is_known(self) -> "MethodConfig":
        name = "uniform" if self.name in MEANS else self.name
        if self.module is None:
            recipes.load_recipe(name, self.options)
        recipes.require_name(name)
        return self


class MergeConfig(Section):
    """Merging while training goes on."""

    every: int | str = 1
    """Epochs between rounds, or "N steps". In observe these are epochs of the fleet, in sync of
    every run."""
    mode: Literal["observe", "sync", "off"] = "observe"
    """`observe`: every round makes a soup of the latest checkpoints; training is not affected.
    `sync`: runs wait for each other at the end of a period, are merged, and train on from the
    merged weights. `off`: soups are made only at the end."""
    method: MethodConfig = MethodConfig(name="greedy")
    """How a round merges: a recipe, with options as in soup.recipes. In sync also `mean`, the same
    as `uniform`, or `pull`, which moves every run towards the mean (PAPA)."""
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of a run's own weights in a pull. The mean has weight 1 - alpha, reduced in proportion
    to the learning rate."""
    quorum: int | None = Field(default=None, ge=1)
    """Runs that must have arrived before a sync round may start without the late ones. Needs
    deadline_s. None: more than half of the runs that are not finished or failed."""
    deadline_s: float | None = Field(default=None, ge=0)
    """Seconds between the last arrival and the start of a sync round with a quorum. None: a round
    waits for all runs that are not finished or failed."""
    optimizer_state: OptimizerState = "keep"
    """Optimizer state of a run that continues from merged weights. `keep`: its own. `reset`: a
    fresh one. `average`: the mean of all members, which need the same optimizer."""
    guard: bool = False
    """Whether to discard a sync round whose merged weights score below the mean of its members on
    the selection split. Costs one evaluation while all runs wait."""

    @field_validator("every")
    @classmethod
    def _every_is_a_period(cls, value: int | str) -> int | str:
        if period_steps(value, 1) is None:
            raise ValueError(
                f'got {value!r}; write a number of epochs, or "200 steps", or set merge.mode=off'
            )
        return value

    @model_validator(mode="after")
    def _fits_the_mode(self) -> "MergeConfig":
        if self.method.name in MEANS and self.mode == "observe":
            raise ValueError(
                f"method: {self.method.name} is for mode: sync, got mode: observe; use uniform, or "
                "mode: sync"
            )
        if self.quorum is not None and self.deadline_s is None:
            raise ValueError(
                f"quorum: {self.quorum} without deadline_s has no effect, because a round then "
                "waits for all runs; set deadline_s, or remove quorum"
            )
        steps = None if isinstance(self.every, int) else period_steps(self.every, 1)
        if self.method.name == PULL and steps is not None and steps < LEAST_PULL_STEPS:
            raise ValueError(
                f"every: {self.every} is too short for method: pull, which sends all weights "
                f'through the store; write "{LEAST_PULL_STEPS} steps" or more'
            )
        return self


class SoupConfig(Section):
    """The soups at the end of training, and which of them is served."""

    recipes: tuple[RecipeConfig, ...] = (
        RecipeConfig(name="best"),
        RecipeConfig(name="uniform"),
        RecipeConfig(name="greedy"),
    )
    """Recipes, in the order of tables, with options as {name: {option: value}}. A recipe may appear
    again with other options. `module:Class` is a recipe of your own: `run`, `plan` and `submit`
    name the module and import it; verbs that only read do not. `--extend` may add more."""
    metric: Metric = "top1"
    """Score on the selection split that recipes optimise: top1 and macro_f1 upwards, nll
    downwards."""
    ingredients: str | tuple[int, ...] = "best"
    """Checkpoints of every run that recipes may use: `best`, `last`, `all`, `top-K`, or a list of
    epochs such as [3, 6, 9]."""
    batchnorm: BatchNormPolicy = "auto"
    """BatchNorm statistics of a mix. `recompute`: from training images. `average`: the weighted
    mean of the members. `best`: of the best member. `frozen`: of any member, if training froze
    them. `auto`: `frozen` if training froze them, else `recompute`. `compare`: every soup with
    `recompute`, `average` and `best`."""
    batchnorm_samples: int = Field(default=2048, ge=2)
    """Training images from which `recompute` takes the statistics."""
    tie: Literal["accept", "strict"] = "accept"
    """Whether greedy recipes and `pruned` accept a change that leaves the score equal."""
    basin: float | None = Field(default=None, ge=0)
    """Largest barrier between an ingredient and the best one: the score of the worse one minus the
    score of their mean, in units of the metric (0..1; nats for nll). An ingredient with a higher
    barrier is left out of all mixes. None: no check."""
    serve: str = "auto"
    """Label of the recipe whose soup is served. `auto`: the best on the selection split."""

    @field_validator("ingredients", mode="before")
    @classmethod
    def _ingredients_are_known(cls, value: Any) -> Any:
        if isinstance(value, str):
            is_valid = re.fullmatch(r"best|last|all|top-[1-9][0-9]*", value) is not None
        else:
            is_valid = isinstance(value, (list, tuple)) and _are_epochs(list(value))
        if not is_valid:
            raise ValueError(
                f"got {value!r}; write best, last, all, top-K such as top-3, or a list of epochs "
                "such as [3, 6, 9]"
            )
        return value

    @model_validator(mode="after")
    def _recipes_are_distinct(self) -> "SoupConfig":
        if not self.recipes:
            raise ValueError("recipes is []; name at least one recipe")
        for i, recipe in enumerate(self.recipes):
            if any(self._are_equal(recipe, other) for other in self.recipes[:i]):
                raise ValueError(
                    f"recipes has {recipe.name} twice with the same options; remove one, or give "
                    "it other options"
                )
        if self.serve != "auto" and self.serve not in self.labels:
            labels = ", ".join(self.labels)
            raise ValueError(f"serve is {self.serve!r}; write auto or one of {labels}")
        return self

    def _are_equal(self, one: RecipeConfig, other: RecipeConfig) -> bool:
        """Whether both make the same soup; a written default equals one that is left out."""
        if one.name != other.name:
            return False
        if one.module is not None:
            return one.options == other.options
        first, second = (
            recipes.load_recipe(recipe.name, recipe.options_under(self.tie))
            for recipe in (one, other)
        )
        return first == second

    @property
    def labels(self) -> tuple[str, ...]:
        """Unique names of the recipes in tables and ids of soups: `manifold`, `manifold-2`."""
        plain = [recipe.label for recipe in self.recipes]
        times = (plain[: i + 1].count(label) for i, label in enumerate(plain))
        return tuple(
            label if n == 1 else f"{label}-{n}" for label, n in zip(plain, times, strict=True)
        )


def _are_epochs(values: list[Any]) -> bool:
    """Whether these are whole numbers from 1 on, in ascending order, without repetition."""
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return bool(values) and whole and values == sorted(set(values)) and values[0] >= 1


class EnsembleConfig(Section):
    """Output ensembles that soups are compared with. `--extend` may add them."""

    soft_voting: bool = True
    """Softmax of the mean logits of the checkpoints of all runs."""
    stacking: bool = False
    """A linear classifier on the concatenated logits of every setting. With data.folds it is fitted
    on the predictions of every member for its held-out images; else on the selection split, where
    it then has no score."""
