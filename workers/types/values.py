"""The nouns: checkpoints, scores, runs, cohorts, mixes. Frozen, plain JSON, torch-free."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from workers.config.model import ModelConfig
from workers.config.train import TrainConfig

SELECTION = "val"
"""The only split that selects; every other split only reports."""

Metric = Literal["top1", "macro_f1", "nll"]
BatchNormPolicy = Literal["auto", "recompute", "average", "best", "frozen", "compare"]
Policy = Literal["recompute", "average", "best", "frozen", "none"]


WORST = -1e9
"""The selection score of what has none; JSON has no minus infinity."""


def digest(value: Any, length: int = 8) -> str:
    """Short sha256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dump_without_defaults(section: BaseModel) -> dict[str, Any]:
    """The section as JSON without defaults, for hashes: a later version may add keys.

    If a default has changed, its first value is the one left out: hashes of existing runs stay.
    """
    dump = section.model_dump(mode="json", exclude_defaults=True)
    first = getattr(section, "first_defaults", {})
    if not first:
        return dump
    values = section.model_dump(mode="json").items()
    return {k: v for k, v in values if (v != first[k] if k in first else k in dump)}


def model_key(spec: ModelConfig) -> str:
    """Names a model specification, e.g. in `Facts.models`."""
    return digest(dump_without_defaults(spec))


def ema_id(run_id: str) -> str:
    """Under which the checkpoints of a run's moving average lie, as those of a run."""
    return f"{run_id}-ema"


def run_id_of(owner: str) -> str:
    """The run that an owner of checkpoints is, or whose moving average it is."""
    return owner.removesuffix("-ema")


def cohort_family(cohort: str) -> str:
    """Id of the cohort, without the BatchNorm policy that one of several soups was made under."""
    return cohort.partition("@")[0]


class FrozenModel(BaseModel):
    """A frozen value: equality is identity, JSON in and out."""

    # JSON has no infinity; as null, a bar of -inf would not come back out of the ledger.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Score(FrozenModel):
    """Metrics of one model on one split. Fractions 0..1, nats; None where not a finite number."""

    count: int
    top1: float
    macro_f1: float | None
    nll: float | None
    ece: float | None
    """Expected calibration error, 15 equal-width bins."""
    worst_class: float | None = None
    """The lowest accuracy of any class; None in ledgers that were written without it."""

    def selection(self, metric: Metric) -> float:
        """The number that recipes maximise; a negative log-likelihood changes sign."""
        value: float | None = getattr(self, metric)
        if value is None:
            return WORST
        return -value if metric == "nll" else value


class Checkpoint(FrozenModel):
    """A complete set of weights in the store: of a run, a base or a soup.

    `name` is what is ordered, mixed and hashed: `<run>/<step:08d>`, `base/<hash>`, `soup/<id>`.
    A run's checkpoint lies under its `id`, which adds the attempt that wrote it.
    """

    name: str
    attempt: int | None = None
    step: int = 0
    sha256: str
    """Of model.safetensors."""
    num_bytes: int
    """Of all its files."""

    @property
    def id(self) -> str:
        return self.name if self.attempt is None else f"{self.name}-{self.attempt}"


class Cohort(FrozenModel):
    """Runs whose weights may be averaged: one base, one evaluation preprocessing, one label map."""

    id: str
    """With `@policy` behind it where several BatchNorm policies are compared."""
    model: ModelConfig
    base: str
    """Name of the base checkpoint, `base/<hash>`."""
    batchnorm: Policy
    """How a mix gets its BatchNorm statistics; `none` for a network without BatchNorm."""

    @property
    def family(self) -> str:
        """The id without a policy: what does not depend on statistics is filed under it."""
        return cohort_family(self.id)

    def under(self, policy: Policy) -> "Cohort":
        """The same runs, their mixes under another policy, to be told apart."""
        return self.model_copy(update={"id": f"{self.id}@{policy}", "batchnorm": policy})


class RunSpec(FrozenModel):
    """One training run of the fleet, completely resolved."""

    id: str
    role: Literal["member", "probe", "trunk", "ema"] = "member"
    """`probe` and `trunk` are stages of the base: not ingredients. `ema` is never ordered: it
    stands for the moving average that its run keeps, whose checkpoints are ingredients too."""
    params: dict[str, Any] = {}
    """What the sweep set, by dotted path; for people and tables."""
    seed: int = 0
    replica: int = 0
    fold: int | None = None
    """The part of the training images that this run does not learn from; None for none."""
    model: ModelConfig
    train: TrainConfig

    @property
    def stream(self) -> str:
        """Names the run's random streams; replicas share it."""
        parts = [
            self.role,
            self.seed,
            self.fold,
            dump_without_defaults(self.model),
            dump_without_defaults(self.train),
        ]
        return digest(parts, 16)


def component_of(key: str, prefixes: Iterable[str]) -> str | None:
    """The longest of the dotted prefixes that is the tensor's name or lies above it; `""` lies
    above all."""
    fitting = (each for each in prefixes if not each or key == each or key.startswith(f"{each}."))
    return max(fitting, key=len, default=None)


class Component(FrozenModel):
    """Tensors that have weights of their own in a mix: those named `prefix`, or below it."""

    prefix: str
    """Dotted module path, or the name of one tensor."""
    weights: tuple[float, ...]
    """One for each checkpoint of the mix, in its order; over the mix's divisor."""


class Mix(FrozenModel):
    """theta = (sum_i weight_i * theta_i) / divisor, in float64, in this order."""

    weights: tuple[tuple[str, float], ...]
    """(checkpoint name, weight), in order of acceptance."""
    divisor: float
    components: tuple[Component, ...] = ()
    """Where weights differ; of several that fit a tensor the one with the longest prefix holds."""

    @classmethod
    def mean(cls, names: list[str] | tuple[str, ...]) -> "Mix":
        return cls(weights=tuple((name, 1.0) for name in names), divisor=float(len(names)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the checkpoints that weigh anything anywhere."""
        return tuple(
            name
            for i, (name, weight) in enumerate(self.weights)
            if weight or any(component.weights[i] for component in self.components)
        )

    @cached_property
    def single(self) -> str | None:
        """The one checkpoint that this mix is, if it is one."""
        if self.components:
            return None
        live = [(name, weight) for name, weight in self.weights if weight]
        if len(live) == 1 and live[0][1] == self.divisor:
            return live[0][0]
        return None

    @cached_property
    def key(self) -> str:
        return digest(dump_without_defaults(self), 12)
