"""Checkpoints, scores, runs, cohorts and mixes. Frozen, plain JSON, torch-free."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from workers.config.model import ModelConfig
from workers.config.train import TrainConfig

SELECTION = "val"
"""The only split that selects. All other splits only report."""

Metric = Literal["top1", "macro_f1", "nll"]
BatchNormPolicy = Literal["auto", "recompute", "average", "best", "frozen", "compare"]
Policy = Literal["recompute", "average", "best", "frozen", "none"]


WORST = -1e9
"""Selection score of a model without one. JSON has no minus infinity."""


def digest(value: Any, length: int = 8) -> str:
    """The first characters of the sha256 of a JSON value, independent of the order of keys."""
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
    """Key of a model configuration, e.g. in `PreflightResult.models`."""
    return digest(dump_without_defaults(spec))


def ema_id(run_id: str) -> str:
    """Id of a run's moving average, which owns checkpoints like a run."""
    return f"{run_id}-ema"


def run_id_of(owner: str) -> str:
    """Id of the run of an owner of checkpoints: itself, or the run of the moving average."""
    return owner.removesuffix("-ema")


def cohort_family(cohort: str) -> str:
    """Id of the cohort without the BatchNorm policy."""
    return cohort.partition("@")[0]


class FrozenModel(BaseModel):
    """A frozen value: equality is identity, JSON in and out."""

    # JSON has no infinity; as null, an `at_least` of -inf could not be read back from the ledger.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileInfo(FrozenModel):
    """A file as it was written."""

    size: int
    """Bytes."""
    sha256: str


class Score(FrozenModel):
    """Metrics of one model on one split: fractions 0..1, and nats. None: not finite."""

    count: int
    top1: float
    macro_f1: float | None
    nll: float | None
    ece: float | None
    """Expected calibration error, 15 equal-width bins."""
    worst_class: float | None = None
    """Lowest accuracy of a class. None: an old ledger."""

    def selection(self, metric: Metric) -> float:
        """The number that recipes maximise. A negative log-likelihood changes sign."""
        value: float | None = getattr(self, metric)
        if value is None:
            return WORST
        return -value if metric == "nll" else value


class Checkpoint(FrozenModel):
    """A complete set of weights in the store, of a run, a base or a soup.

    Orders, mixes and hashes use `name`: `<run>/<step:08d>`, `base/<hash>`, `soup/<id>`. The folder
    in the store is named by `id`, which adds the attempt that wrote the checkpoint.
    """

    name: str
    attempt: int | None = None
    step: int = 0
    sha256: str
    """Hash of model.safetensors."""
    num_bytes: int
    """Bytes of all files together."""

    @property
    def id(self) -> str:
        return self.name if self.attempt is None else f"{self.name}-{self.attempt}"


class Cohort(FrozenModel):
    """Runs whose weights may be averaged: one base, one evaluation preprocessing, one label map."""

    id: str
    """Ends in `@policy` if several BatchNorm policies are compared."""
    model: ModelConfig
    base: str
    """Name of the base checkpoint, `base/<hash>`."""
    batchnorm: Policy
    """Policy of BatchNorm statistics of mixes. `none`: a network without BatchNorm."""

    @property
    def family(self) -> str:
        """The id without a policy, for results that do not depend on BatchNorm statistics."""
        return cohort_family(self.id)

    def under(self, policy: Policy) -> "Cohort":
        """The cohort of the same runs with another policy and id."""
        return self.model_copy(update={"id": f"{self.id}@{policy}", "batchnorm": policy})


class RunSpec(FrozenModel):
    """One training run of the fleet, fully resolved."""

    id: str
    role: Literal["member", "probe", "trunk", "ema"] = "member"
    """`probe` and `trunk` are stages of the base and no ingredients. `ema` is the moving average of
    a run: it is never ordered, and its checkpoints are ingredients."""
    params: dict[str, Any] = {}
    """Settings of the sweep by dotted path, for tables."""
    seed: int = 0
    replica: int = 0
    fold: int | None = None
    """Number of the fold that this run does not learn from. None: no fold."""
    model: ModelConfig
    train: TrainConfig

    @property
    def stream(self) -> str:
        """Name of the run's random streams. Replicas share it."""
        parts = [
            self.role,
            self.seed,
            self.fold,
            dump_without_defaults(self.model),
            dump_without_defaults(self.train),
        ]
        return digest(parts, 16)


def component_of(key: str, prefixes: Iterable[str]) -> str | None:
    """The longest dotted prefix of a tensor's name. `""` is a prefix of all."""
    fitting = (
        prefix for prefix in prefixes if not prefix or key == prefix or key.startswith(f"{prefix}.")
    )
    return max(fitting, key=len, default=None)


class Component(FrozenModel):
    """Tensors with weights of their own in a mix: those named `prefix`, or below it."""

    prefix: str
    """Dotted module path, or the name of one tensor."""
    weights: tuple[float, ...]
    """A weight per checkpoint of the mix, in its order, over the mix's divisor."""


class Mix(FrozenModel):
    """theta = (sum_i weight_i * theta_i) / divisor, in float64, in this order."""

    weights: tuple[tuple[str, float], ...]
    """(checkpoint name, weight), in order of acceptance."""
    divisor: float
    components: tuple[Component, ...] = ()
    """Components with weights of their own. The longest prefix of a tensor decides."""

    @classmethod
    def mean(cls, names: list[str] | tuple[str, ...]) -> "Mix":
        return cls(weights=tuple((name, 1.0) for name in names), divisor=float(len(names)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the checkpoints with a weight other than 0."""
        return tuple(
            name
            for i, (name, weight) in enumerate(self.weights)
            if weight or any(component.weights[i] for component in self.components)
        )

    @cached_property
    def single(self) -> str | None:
        """Name of the checkpoint that equals this mix. None: there is no such checkpoint."""
        if self.components:
            return None
        live = [(name, weight) for name, weight in self.weights if weight]
        if len(live) == 1 and live[0][1] == self.divisor:
            return live[0][0]
        return None

    @cached_property
    def key(self) -> str:
        return digest(dump_without_defaults(self), 12)
