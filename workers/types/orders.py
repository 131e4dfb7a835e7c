"""Orders: bases, training, tastes, measurements, soups. Ids are deterministic, without attempt."""

from typing import Any, Literal

from pydantic import Field

from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.types.preflight import PreflightResult
from workers.types.recipe_protocol import (
    Answer,
    GramMatrices,
    Ingredient,
    MixGradient,
    RecipeContext,
    Soup,
)
from workers.types.values import Checkpoint, Cohort, FrozenModel, Metric, Mix, RunSpec


class WorkerConfig(FrozenModel):
    """Settings that all orders of an experiment share. A worker is built with them."""

    uri: str
    """URI of the experiment, `<storage>/<name>`."""
    seed: int
    data: DataConfig
    base: BaseConfig
    metric: Metric
    batchnorm_samples: int
    ranks: int = 1
    threads: int = 1
    """torch threads per rank. On a CPU the bits of results depend on it."""
    device: Literal["cpu", "cuda"] = "cpu"
    cache_dir: str | None = None
    """Folder of the node for files of a remote store. None: the cache of the node."""


class Order(FrozenModel):
    """A piece of work to be done once. `place`: a training slot, or the merge actor."""

    files: dict[str, str] = Field(default={}, exclude=True)
    """sha256 by path of files of the store that the order may read. Part of no hash."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "slot"

    @property
    def run_id(self) -> str | None:
        return None


class MergeActorOrder(Order):
    """An order for the merge actor: it takes no training slot."""

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class PreflightOrder(MergeActorOrder):
    kind: Literal["preflight"] = "preflight"
    models: tuple[ModelConfig, ...]
    optimizers: tuple[str, ...] = ()
    """Names of the optimizers of all runs."""
    train_configs: tuple[tuple[str, TrainConfig], ...] = ()
    """(model key, section) of distinct settings that only the model or timm can check: modules to
    unfreeze, auto-augment policies, layer decay."""
    round_steps: int | None = None
    """Steps between sync rounds. None: they are counted in epochs, or there are none."""
    expected: PreflightResult | None = None
    """Result of the first preflight, if splits.parquet is made again: the images must be the same.
    None: this is the first one."""
    longest_train: TrainConfig | None = None
    """The longest training config, to check that a sync round happens. None: no check."""
    fingerprints: dict[str, str] = {}
    """By split, what an earlier preflight found. Empty: the experiment begins."""

    @staticmethod
    def id_of() -> str:
        return "preflight"

    @property
    def id(self) -> str:
        return self.id_of()


class BaseOrder(Order):
    """Write `name` into the store: a fresh model with a shared head, or the weights of `source`."""

    kind: Literal["base"] = "base"
    name: str
    """`base/<hash>`."""
    model: ModelConfig
    source: Checkpoint | None = None
    """The last checkpoint of the probe or trunk. None: a fresh model."""
    expected: str | None = None
    """sha256 of the weights, if they are made again. None: they are made for the first time."""

    @staticmethod
    def id_of(name: str) -> str:
        return f"base-{name.removeprefix('base/')}"

    @property
    def id(self) -> str:
        return self.id_of(self.name)


OptimizerState = Literal["keep", "reset", "average"]
"""Optimizer state of a run after merging: its own, a fresh one, or the mean."""


class Rejoin(FrozenModel):
    """The way a run continues from merged weights."""

    own_checkpoint: Checkpoint
    """Checkpoint of the run, with its step, schedule, optimizer and moving average."""
    optimizer_state: OptimizerState = "keep"
    peers: tuple[Checkpoint, ...] = ()
    """All members of the round, in its order, if their optimizer states are averaged."""
    alpha: float | None = None
    """Weight of the own weights in a pull. The merged ones have the rest, scaled down with the
    learning rate. None: the merged weights replace the own."""


class TrainOrder(Order):
    """Train `run` from `start` to `stop_step`."""

    kind: Literal["train"] = "train"
    run: RunSpec
    start: Checkpoint
    """The run's own checkpoint, a base, or with `rejoin` the merged weights of a round."""
    stop_step: int
    rejoin: Rejoin | None = None
    micro_batch: int | None = None
    """Images per micro-batch, fewer after running out of memory. The optimizer step is the same.
    None: as configured."""

    @staticmethod
    def id_of(run: str, stop_step: int) -> str:
        return f"train-{run}-{stop_step:08d}"

    @property
    def id(self) -> str:
        return self.id_of(self.run.id, self.stop_step)

    @property
    def own_checkpoint(self) -> Checkpoint:
        """The checkpoint whose step and training state the run continues with."""
        return self.rejoin.own_checkpoint if self.rejoin is not None else self.start

    @property
    def is_pull(self) -> bool:
        """Whether own weights move towards `start` instead of being replaced by it."""
        return self.rejoin is not None and self.rejoin.alpha is not None

    @property
    def run_id(self) -> str | None:
        return self.run.id


class GeometryOrder(MergeActorOrder):
    """Read the ingredients and the base side by side to answer `GramMatrices`."""

    kind: Literal["geometry"] = "geometry"
    cohort: Cohort
    question: GramMatrices
    ingredients: tuple[Checkpoint, ...]
    """Checkpoints of the ingredients and the base."""
    observe: bool = False
    """Whether this is for an anytime soup during training."""

    @staticmethod
    def id_of(question: GramMatrices, family: str, observe: bool) -> str:
        return _measurement_id(question, family, observe)

    @property
    def id(self) -> str:
        return self.id_of(self.question, self.cohort.family, self.observe)


class GradientOrder(Order):
    """Pass backward through a mix to answer `MixGradient`."""

    kind: Literal["gradient"] = "gradient"
    cohort: Cohort
    question: MixGradient
    ingredients: tuple[Checkpoint, ...]
    """All checkpoints of the mix, those of weight zero included."""
    observe: bool = False
    """Whether this is for an anytime soup during training, which takes no training slot."""

    @staticmethod
    def id_of(question: MixGradient, family: str, observe: bool) -> str:
        return _measurement_id(question, family, observe)

    @property
    def id(self) -> str:
        return self.id_of(self.question, self.cohort.family, self.observe)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge" if self.observe else "slot"


def _measurement_id(question: GramMatrices | MixGradient, family: str, observe: bool) -> str:
    """The same for every merge that asks the question."""
    what = f"observe-{question.kind}" if observe else question.kind
    return f"{what}-{family}-{question.key}"


class MergeOrder(MergeActorOrder):
    """Replay the recipe up to its next question, or to its soup."""

    kind: Literal["merge"] = "merge"
    merge: str
    recipe: str
    options: dict[str, Any] = {}
    ingredients: tuple[Ingredient, ...]
    answers: tuple[Answer, ...] = ()
    context: RecipeContext

    @staticmethod
    def id_of(merge: str, num_answers: int) -> str:
        return f"merge-{merge}-{num_answers:04d}"

    @property
    def id(self) -> str:
        return self.id_of(self.merge, len(self.answers))


class TasteOrder(Order):
    """Score a mix on the selection split, at most until it provably cannot reach `at_least`."""

    kind: Literal["taste"] = "taste"
    cohort: Cohort
    mix: Mix
    ingredients: tuple[Checkpoint, ...]
    """Checkpoints of the mix's members."""
    hard_images_first: tuple[str, ...] = ()
    """Ids of checkpoints. Images that their cached predictions get wrong are forwarded first."""
    at_least: float | None = None
    strict: bool = False
    observe: bool = False
    """Whether this is for an anytime soup during training, which takes no training slot."""
    hits: bool = False
    """Whether to report the images that are right. Such a taste is never stopped early."""

    @staticmethod
    def id_of(cohort: str, mix: str, observe: bool, bar: str) -> str:
        """`mix` is its key; `bar` what it must reach, or what else it is asked for."""
        return f"{TasteOrder.prefix_of(cohort, mix, observe)}{bar}"

    @staticmethod
    def prefix_of(cohort: str, mix: str, observe: bool) -> str:
        """What the ids of all tastes of a mix have in common. Those of rounds are apart, so that
        one that was given up in a round does not count in the end."""
        return f"{'observe' if observe else 'taste'}-{cohort}-{mix}-"

    @property
    def id(self) -> str:
        bar = "full" if self.at_least is None else f"{self.at_least:.12g}{'+' * self.strict}"
        bar = "hits" if self.hits else bar
        return self.id_of(self.cohort.id, self.mix.key, self.observe, bar)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge" if self.observe else "slot"


class BlendOrder(Order):
    """Write the soup of a mix: blended, with BatchNorm statistics, loadable by timm."""

    kind: Literal["blend"] = "blend"
    name: str
    """`soup/<id>`."""
    recipe: str
    cohort: Cohort
    soup: Soup
    ingredients: tuple[Checkpoint, ...]

    @staticmethod
    def id_of(name: str) -> str:
        return f"blend-{name.removeprefix('soup/')}"

    @property
    def id(self) -> str:
        return self.id_of(self.name)
