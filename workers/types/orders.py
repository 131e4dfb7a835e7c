"""Orders go down: bases, trained runs, tastes, measurements, and soups. Ids are deterministic and
omit the attempt."""

from typing import Any, Literal

from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
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
    """What every order of an experiment has in common; a worker is built with it."""

    uri: str
    """Of the experiment: `<storage>/<name>`."""
    seed: int
    data: DataConfig
    base: BaseConfig
    metric: Metric
    batchnorm_samples: int
    ranks: int = 1
    threads: int = 1
    """torch threads per rank; fixes the bits on a CPU."""
    device: Literal["cpu", "cuda"] = "cpu"
    cache_dir: str | None = None
    """Node-local folder for files of a remote store."""


class Order(FrozenModel):
    """Something to be done, once. `place`: a training slot, or the merge actor."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "slot"

    @property
    def run_id(self) -> str | None:
        return None


class PreflightOrder(Order):
    kind: Literal["preflight"] = "preflight"
    models: tuple[ModelConfig, ...]
    optimizers: tuple[str, ...] = ()
    """Optimizers the runs will ask for."""
    train_configs: tuple[tuple[str, TrainConfig], ...] = ()
    """Distinct settings that only the model or timm can judge, as (model key, section): modules to
    unfreeze, auto-augment policies, layer decay."""
    round_steps: int | None = None
    """Between sync rounds, where they are counted in steps."""
    longest_train: TrainConfig | None = None
    """Of the runs, for them."""

    @property
    def id(self) -> str:
        return "preflight"

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class BaseOrder(Order):
    """Write `name` into the store: a fresh model with a shared head, or what `source` became."""

    kind: Literal["base"] = "base"
    name: str
    """`base/<hash>`."""
    model: ModelConfig
    source: Checkpoint | None = None
    """The last checkpoint of the probe or trunk; None for a fresh model."""

    @property
    def id(self) -> str:
        return f"base-{self.name.removeprefix('base/')}"


OptimizerState = Literal["keep", "reset", "average"]
"""What becomes of momentum when a run is given merged weights."""


class Rejoin(FrozenModel):
    """The run goes on from what its cohort merged; this is where it stood by itself."""

    own_checkpoint: Checkpoint
    """Of the run: where its step, schedule, optimizer and moving average are."""
    optimizer_state: OptimizerState = "keep"
    peers: tuple[Checkpoint, ...] = ()
    """Everyone of the round, in its order, where their optimizers' states are averaged."""
    alpha: float | None = None
    """Of `pull`: own weights count alpha, the merged ones the rest, which the schedule scales down
    with the learning rate. None: the merged weights take the place of the own."""


class TrainOrder(Order):
    """Train `run` from `start` to `stop_step`."""

    kind: Literal["train"] = "train"
    run: RunSpec
    start: Checkpoint
    """Its own, a base, or with `rejoin` the merged weights of a round."""
    stop_step: int
    rejoin: Rejoin | None = None
    micro_batch: int | None = None
    """Smaller micro-batch after running out of memory; the optimizer step stays the same."""

    @property
    def id(self) -> str:
        return f"train-{self.run.id}-{self.stop_step:08d}"

    @property
    def own_checkpoint(self) -> Checkpoint:
        """Where the run itself stands: whose step, and whose state of training, count."""
        return self.rejoin.own_checkpoint if self.rejoin is not None else self.start

    @property
    def is_pull(self) -> bool:
        """Own weights are moved towards the start instead of being replaced by it."""
        return self.rejoin is not None and self.rejoin.alpha is not None

    @property
    def run_id(self) -> str | None:
        return self.run.id


class GeometryOrder(Order):
    """Read the ingredients and the base side by side; answers `GramMatrices`."""

    kind: Literal["geometry"] = "geometry"
    cohort: Cohort
    question: GramMatrices
    ingredients: tuple[Checkpoint, ...]
    """Where the ingredients and the base lie."""
    observe: bool = False
    """For an anytime soup during training."""

    @property
    def id(self) -> str:
        return measurement_id(self.question, self.cohort.family, self.observe)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class GradientOrder(Order):
    """One backward pass through a mix; answers `MixGradient`."""

    kind: Literal["gradient"] = "gradient"
    cohort: Cohort
    question: MixGradient
    ingredients: tuple[Checkpoint, ...]
    """Where the checkpoints of the mix lie, those of weight zero too."""
    observe: bool = False
    """For an anytime soup during training: never takes a training slot."""

    @property
    def id(self) -> str:
        return measurement_id(self.question, self.cohort.family, self.observe)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge" if self.observe else "slot"


def measurement_id(question: GramMatrices | MixGradient, family: str, observe: bool) -> str:
    """Of the order that answers the question, the same for every merge that asks it."""
    what = f"observe-{question.kind}" if observe else question.kind
    return f"{what}-{family}-{question.key}"


class MergeOrder(Order):
    """Replay the recipe up to its next question, or to its soup."""

    kind: Literal["merge"] = "merge"
    merge: str
    recipe: str
    options: dict[str, Any] = {}
    ingredients: tuple[Ingredient, ...]
    answers: tuple[Answer, ...] = ()
    context: RecipeContext | None = None

    @property
    def id(self) -> str:
        return f"merge-{self.merge}-{len(self.answers):04d}"

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class TasteOrder(Order):
    """Score a mix on the selection split; stop once the bar is provably out of reach."""

    kind: Literal["taste"] = "taste"
    cohort: Cohort
    mix: Mix
    ingredients: tuple[Checkpoint, ...]
    """Where the mix's members lie."""
    hard_images_first: tuple[str, ...] = ()
    """Checkpoint ids whose cached predictions decide which images are looked at first."""
    at_least: float | None = None
    strict: bool = False
    observe: bool = False
    """An anytime taste during training: never takes a training slot."""
    hits: bool = False
    """Tell which images are right; such a taste is never stopped early."""

    @property
    def id(self) -> str:
        bar = "full" if self.at_least is None else f"{self.at_least:.12g}{'+' * self.strict}"
        bar = "hits" if self.hits else bar
        # Apart, so that a round's taste that was given up refuses nothing at the end.
        what = "observe" if self.observe else "taste"
        return f"{what}-{self.cohort.id}-{self.mix.key}-{bar}"

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge" if self.observe else "slot"


class BlendOrder(Order):
    """Write the soup of a mix: blended, BatchNorm statistics settled, loadable by timm."""

    kind: Literal["blend"] = "blend"
    name: str
    """`soup/<id>`."""
    recipe: str
    cohort: Cohort
    soup: Soup
    ingredients: tuple[Checkpoint, ...]

    @property
    def id(self) -> str:
        return f"blend-{self.name.removeprefix('soup/')}"
