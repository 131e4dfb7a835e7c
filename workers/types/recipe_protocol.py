"""What a recipe sees, asks and returns. A recipe has no way to name a report split."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from workers.types.values import FrozenModel, Mix, digest, dump_without_defaults


class Ingredient(FrozenModel):
    """A candidate as a recipe sees it: a name and its score on the selection split."""

    name: str
    run: str
    score: float


class RecipeContext(FrozenModel):
    """What a recipe knows beside its ingredients: its second argument."""

    base: str
    """Name of the checkpoint that all ingredients were fine-tuned from; may be mixed."""
    components: tuple[str, ...] = ()
    """Groups of layers that the model executes, in order: dotted prefixes of tensor names."""
    seed: int = 0
    batchnorm: str = "none"
    """How mixes get their BatchNorm statistics."""
    num_selection: int = 0
    """Images of the selection split."""


class TasteResult(FrozenModel):
    """A mix scored on the selection split, completely or until it could not reach the bar."""

    score: float | None
    """Selection score (higher is better); None when stopped early."""
    at_most: float
    """Proven upper bound; equals `score` when complete."""
    samples: int
    """Images forwarded to know it."""
    hits: str | None = None
    """Which images it got right, in split order, eight to two hexadecimal digits, the first image
    the highest bit; only where the question asks."""
    nll: float | None = None
    """Mean cross-entropy, nats; None when stopped early, or not finite."""


class Decision(FrozenModel):
    """One step of a recipe, for soup.json and the report."""

    candidate: str
    accepted: bool
    before: float | None = None
    """Selection score of the soup without the candidate."""
    after: float | None = None
    """With it; None when the taste was stopped early."""
    at_most: float | None = None
    """With it, at most; when the taste was stopped early."""
    reason: str


class Soup(FrozenModel):
    """What a recipe returns."""

    mix: Mix
    score: float | None = None
    """Selection score, when the recipe learned it."""
    decisions: tuple[Decision, ...] = ()


class Taste(FrozenModel):
    """Scores of all mixes on the selection split. Answer: `TasteResults`, in order."""

    kind: Literal["taste"] = "taste"
    mixes: tuple[Mix, ...]
    hits: bool = False
    """Whether to tell which images each mix gets right."""

    @property
    def mentioned(self) -> frozenset[str]:
        """Names of checkpoints that the question speaks of."""
        return frozenset(name for mix in self.mixes for name, _ in mix.weights)


class FirstAtLeast(FrozenModel):
    """The first mix in order that reaches the bar. Answer: `FirstResult`."""

    kind: Literal["first"] = "first"
    mixes: tuple[Mix, ...]
    at_least: float
    strict: bool = False
    """The bar itself is not enough."""

    def is_met_by(self, score: float) -> bool:
        return score > self.at_least if self.strict else score >= self.at_least

    @property
    def mentioned(self) -> frozenset[str]:
        return frozenset(name for mix in self.mixes for name, _ in mix.weights)


class TasteResults(FrozenModel):
    kind: Literal["tastings"] = "tastings"
    scores: tuple[float, ...]
    hits: tuple[str | None, ...] = ()
    """`Tasting.hits` of each mix, where they were asked for."""
    nll: tuple[float | None, ...] = ()
    """`Tasting.nll` of each mix."""


class FirstResult(FrozenModel):
    """`tried` are the tastings in order, up to and including the accepted one."""

    kind: Literal["found"] = "found"
    index: int | None
    tried: tuple[TasteResult, ...]


class GramMatrices(FrozenModel):
    """Inner products of the ingredients' displacements from the base. Answer: `GramResult`."""

    kind: Literal["geometry"] = "geometry"
    names: tuple[str, ...]
    base: str

    @cached_property
    def key(self) -> str:
        return digest(dump_without_defaults(self), 12)

    @property
    def mentioned(self) -> frozenset[str]:
        return frozenset((*self.names, self.base))


class GramResult(FrozenModel):
    """Per tensor <theta_i - theta_base, theta_j - theta_base> for i <= j, row by row, in float64;
    weights only: neither integer tensors nor BatchNorm statistics."""

    kind: Literal["grams"] = "grams"
    tensors: dict[str, tuple[float, ...]]


class MixGradient(FrozenModel):
    """How the loss of a mix on a batch of the selection split changes with its weights: one
    backward pass through one blended model. BatchNorm statistics are blended like weights here.
    Answer: `MixGradientResult`."""

    kind: Literal["gradient"] = "gradient"
    mix: Mix
    components: tuple[str, ...]
    """Prefixes to tell apart; `""` is everything that no longer prefix names."""
    epoch: int
    """Shuffles the selection split, together with the experiment's seed."""
    batch: int
    batch_size: int
    temperature: float = 1.0
    """The logits are multiplied by it."""

    @cached_property
    def key(self) -> str:
        return digest(dump_without_defaults(self), 12)

    @property
    def mentioned(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.mix.weights)


class MixGradientResult(FrozenModel):
    kind: Literal["slope"] = "slope"
    loss: float
    """Mean cross-entropy, nats."""
    weights: tuple[tuple[float, ...], ...]
    """d loss / d weight: a row per component, a column per checkpoint of the mix, divisor
    included."""
    temperature: float
    """d loss / d temperature"""


Question = Annotated[Taste | FirstAtLeast | GramMatrices | MixGradient, Field(discriminator="kind")]
Answer = Annotated[
    TasteResults | FirstResult | GramResult | MixGradientResult, Field(discriminator="kind")
]
