"""The sections of the configuration that the driver reads: sweep, fleet, merge, soup, ensemble.

What a worker reads lives in `workers.config`; `orchestrator.config` composes them all.
"""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from workers import recipes
from workers.config import Section
from workers.config.train import period_steps
from workers.types import BatchNormPolicy, Metric, OptimizerState

Whole = tuple[int, int]
"""An inclusive range of integers; named because `Axis.int` hides the builtin."""


class Axis(Section):
    """What one setting takes over the sweep: exactly one of the fields.

    `[a, b]` in YAML is short for `{choice: [a, b]}`.
    """

    choice: tuple[Any, ...] | None = None
    """Values as written; a grid and a zip take them in order."""
    uniform: tuple[float, float] | None = None
    """[low, high)"""
    loguniform: tuple[float, float] | None = None
    """[low, high), uniform in the logarithm; low > 0."""
    int: Whole | None = None
    """[low, high], both included."""

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
            raise ValueError(f"{kind} {list(value)} is no range; write [low, high]")
        if kind == "loguniform" and value[0] <= 0:
            raise ValueError(f"loguniform {list(value)} must begin above 0")
        return self

    @model_serializer(mode="plain")
    def _as_written(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self
            if value is not None
        }


class SweepConfig(Section):
    """The runs of the fleet. Without it there is one run."""

    sampler: Literal["grid", "random", "list", "zip"] = "grid"
    """`grid`: every combination, the last axis fastest; `random`: `num_runs` draws, each the same
    however many there are; `list`: `runs` as written; `zip`: the axes side by side."""
    num_runs: int | None = Field(default=None, ge=1)
    """Draws of the random sampler."""
    seeds: int | tuple[int, ...] | None = None
    """Each setting is trained with these seeds; a number N stands for 0..N-1."""
    space: dict[str, Axis] = {}
    """Dotted path of `train.*`, `model.*` or `seed` -> what it takes."""
    runs: tuple[dict[str, Any], ...] = ()
    """Explicit settings by dotted or nested path."""

    @model_validator(mode="before")
    @classmethod
    def _runs_are_a_list(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("runs") and "sampler" not in value:
            return {**value, "sampler": "list"}
        return value

    @model_validator(mode="after")
    def _sampler_has_what_it_needs(self) -> "SweepConfig":
        if self.runs and self.sampler != "list":
            raise ValueError(f"runs are for sampler: list, not {self.sampler}; remove one")
        if self.sampler == "list" and (self.space or not self.runs):
            raise ValueError("sampler: list needs runs and no space; write the settings into runs")
        if (self.sampler == "random") != (self.num_runs is not None):
            raise ValueError(
                f"num_runs is {self.num_runs} with sampler: {self.sampler}; sampler: random needs "
                "it and no other takes it (to repeat a setting with other seeds, use seeds)"
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
                    f"space.{path} is a range, which a {self.sampler} cannot list; give values, "
                    "or use sampler: random"
                )
            lengths[path] = len(axis.choice)
        if self.sampler == "zip" and len(set(lengths.values())) > 1:
            raise ValueError(f"sampler: zip needs axes of one length, got {lengths}")
        return self

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> "SweepConfig":
        if self.seeds is None:
            return self
        if not self.seed_values or len(set(self.seed_values)) != len(self.seed_values):
            raise ValueError(f"seeds {self.seeds!r} must be a count, or a list of distinct seeds")
        if "seed" in self.space:
            raise ValueError("seeds and space.seed both set the seed; keep one")
        return self

    @property
    def seed_values(self) -> tuple[int, ...]:
        if self.seeds is None:
            return (0,)
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class FleetConfig(Section):
    """What the runs may use, and how much trouble the fleet puts up with."""

    gpus_per_run: float = Field(default=1, gt=0)
    """GPUs, and so ranks, of one run; below 1 is a share of a GPU for one rank. With device: cpu
    the whole numbers count gloo ranks; a cluster without GPUs trains one rank on the CPU."""
    cpus_per_run: int = Field(default=1, ge=1)
    """CPU cores and torch threads of one rank; on a CPU they are part of the result's bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where the cluster has any."""
    max_concurrent_runs: int | None = Field(default=None, ge=1)
    """As many as fit, when absent."""
    max_failures: int = Field(default=3, ge=0)
    """Attempts an order may lose by its own fault before it is given up."""
    max_hours: float | None = Field(default=None, gt=0)
    """Wall-clock hours after which training stops and what is committed is souped."""
    heartbeat_s: float = Field(default=120, gt=0)
    """Seconds without progress after which a worker counts as hanging."""
    grace_s: float = Field(default=2, ge=0)
    """Seconds a worker gets to write a checkpoint when it has to go."""
    env: dict[str, str] = {}
    """Environment variables of the workers."""
    label_selector: dict[str, str] = {}
    """Labels of the Ray nodes to use."""

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
        recipes.load_recipe(self.name, self.options)
        return self

    @property
    def label(self) -> str:
        """What people call it: its name, of a dotted path the class alone."""
        return self.name.rpartition(":")[2]

    def options_under(self, tie: str) -> dict[str, Any]:
        """The options, with soup.tie for a recipe that has an option `tie` and no value for it."""
        return {**recipes.tie_option(self.name, tie), **self.options}

    @model_serializer(mode="plain")
    def _as_written(self) -> str | dict[str, Any]:
        return {self.name: self.options} if self.options else self.name


PULL = "pull"
MEANS = frozenset({PULL, "mean"})
"""Names that `merge.method` knows besides those of recipes; both are about the plain mean."""
LEAST_PULL_STEPS = 100
"""Between pulls: the weights of every member cross the store."""


class MethodConfig(RecipeConfig):
    """A recipe, or one of MEANS."""

    @model_validator(mode="after")
    def _is_known(self) -> "MethodConfig":
        recipes.load_recipe("uniform" if self.name in MEANS else self.name, self.options)
        return self


class MergeConfig(Section):
    """Merging while training goes on."""

    every: int | str = 1
    """Epochs between rounds (of the fleet in observe, of each run in sync), or "N steps"."""
    mode: Literal["observe", "sync", "off"] = "observe"
    """`observe`: an anytime soup of the newest checkpoints each round; training is untouched.
    `sync`: runs wait for each other and go on from what was merged."""
    method: MethodConfig = MethodConfig(name="greedy")
    """A recipe, with options as in soup.recipes; in sync also `mean`, which is `uniform`, or
    `pull`: every run moves towards the mean (PAPA)."""
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Of `pull`: own weights count alpha, the mean 1 - alpha, which falls with the learning
    rate."""
    quorum: int | None = Field(default=None, ge=1)
    """Runs that must wait before a sync round may go without the late ones; more than half of
    those alive, when absent."""
    deadline_s: float | None = Field(default=None, ge=0)
    """Seconds that a quorum waits after the last arrival. Null waits for everyone alive."""
    optimizer_state: OptimizerState = "keep"
    """Of a run that is given merged weights: its own, a fresh one, or the mean of all members'."""
    guard: bool = False
    """Roll a sync round back when the merged weights score below their members' mean on the
    selection split: costs one evaluation while everyone waits."""

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
                f"quorum: {self.quorum} without deadline_s says nothing, for a round then waits "
                "for everyone alive; give deadline_s, or remove quorum"
            )
        steps = None if isinstance(self.every, int) else period_steps(self.every, 1)
        if self.method.name == PULL and steps is not None and steps < LEAST_PULL_STEPS:
            raise ValueError(
                f"every: {self.every} is too often for method: pull, which passes all weights "
                f'through the store; write "{LEAST_PULL_STEPS} steps" or more'
            )
        return self


class SoupConfig(Section):
    """The soups at the end, and which of them is served."""

    recipes: tuple[RecipeConfig, ...] = (
        RecipeConfig(name="best"),
        RecipeConfig(name="uniform"),
        RecipeConfig(name="greedy"),
    )
    """In the order they are made and shown; a recipe with other options may be there again."""
    metric: Metric = "top1"
    """Of the selection split; what recipes maximise."""
    ingredients: str | tuple[int, ...] = "best"
    """Checkpoints of each run that recipes see: `best`, `last`, `all`, `top-K`, or a list of epochs
    such as [3, 6, 9], the snapshots of a trajectory."""
    batchnorm: BatchNormPolicy = "auto"
    """How a mix gets its BatchNorm statistics."""
    batchnorm_samples: int = Field(default=2048, ge=2)
    """Training images that `recompute` forwards."""
    tie: Literal["accept", "strict"] = "accept"
    """Whether greedy takes a candidate that leaves the score as it is."""
    basin: float | None = Field(default=None, ge=0)
    """Points of the metric, 0..1 (nats for nll), that a mix of an ingredient and the best one may
    lie below the worse of both; who lies lower takes part in no mix. Off when absent."""
    serve: str = "auto"
    """Label of the recipe whose soup is served; `auto` takes the best on the selection split."""

    @field_validator("ingredients", mode="before")
    @classmethod
    def _ingredients_are_known(cls, value: Any) -> Any:
        if isinstance(value, str):
            known = re.fullmatch(r"best|last|all|top-[1-9][0-9]*", value) is not None
        else:
            known = isinstance(value, (list, tuple)) and _are_epochs(list(value))
        if not known:
            raise ValueError(
                f"got {value!r}; write best, last, all, top-K such as top-3, or a list of epochs "
                "such as [3, 6, 9]"
            )
        return value

    @model_validator(mode="after")
    def _recipes_are_distinct(self) -> "SoupConfig":
        if not self.recipes:
            raise ValueError("recipes [] must name at least one recipe")
        for i, recipe in enumerate(self.recipes):
            if any(self._make_the_same(recipe, other) for other in self.recipes[:i]):
                raise ValueError(
                    f"recipes has {recipe.name} twice with the same options; remove one, or give "
                    "it other options"
                )
        if self.serve != "auto" and self.serve not in self.labels:
            known = ", ".join(self.labels)
            raise ValueError(f"serve is {self.serve!r}; write auto or one of {known}")
        return self

    def _make_the_same(self, one: RecipeConfig, other: RecipeConfig) -> bool:
        """An option that is written and one that is left at its default are the same."""
        asked = [
            recipes.load_recipe(each.name, each.options_under(self.tie))
            for each in (one, other)
            if one.name == other.name
        ]
        return bool(asked) and asked[0] == asked[1]

    @property
    def labels(self) -> tuple[str, ...]:
        """What the recipes are called in tables and names of soups, none twice: `manifold`,
        `manifold-2`."""
        plain = [recipe.label for recipe in self.recipes]
        times = (plain[: i + 1].count(label) for i, label in enumerate(plain))
        return tuple(
            label if n == 1 else f"{label}-{n}" for label, n in zip(plain, times, strict=True)
        )


def _are_epochs(values: list[Any]) -> bool:
    """Whole numbers from 1 on, in order, none twice."""
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return bool(values) and whole and values == sorted(set(values)) and values[0] >= 1


class EnsembleConfig(Section):
    """Output ensembles that soups are compared with."""

    soft_voting: bool = True
    """Softmax of the mean logits of every run's checkpoint."""
    stacking: bool = False
    """A linear classifier on the concatenated logits of every setting. With data.folds it is fitted
    on what each member says of the images that it did not learn from, else on the selection split,
    where it then has no score."""
