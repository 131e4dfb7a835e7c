"""Inputs, questions, answers and result of a recipe. None of them can name a report split."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from workers.types.values import FrozenModel, Mix, digest, dump_without_defaults


class Ingredient(FrozenModel):
    """A candidate: a name and its score on the selection split."""

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
    """Policy by which mixes get BatchNorm statistics."""
    num_selection: int = 0
    """Number of images of the selection split."""


class TasteResult(FrozenModel):
    """A mix scored on the selection split, completely or until it could not reach `at_least`."""

    score: float | None
    """Selection score, higher is better. None: stopped early."""
    at_most: float
    """Proven upper bound of the score. Equals `score` if complete."""
    samples: int
    """Number of images forwarded."""
    hits: str | None = None
    """A bit per image, 1 if it is right, in split order: eight images to two hexadecimal digits,
    the first image as the highest bit. None: not asked for."""
    nll: float | None = None
    """Mean cross-entropy, nats. None: stopped early, or not finite."""


class Decision(FrozenModel):
    """One step of a recipe, for soup.json and the report."""

    candidate: str
    accepted: bool
    before: float | None = None
    """Selection score of the soup without the candidate."""
    after: float | None = None
    """Selection score with the candidate. None: the taste was stopped early."""
    at_most: float | None = None
    """Upper bound of `after`, if the taste was stopped early."""
    reason: str


class Soup(FrozenModel):
    """The result of a recipe."""

    mix: Mix
    score: float | None = None
    """Selection score. None: the recipe did not ask for it."""
    decisions: tuple[Decision, ...] = ()


class Taste(FrozenModel):
    """Question: the scores of all mixes on the selection split. Answer: `TasteResults`."""

    kind: Literal["taste"] = "taste"
    mixes: tuple[Mix, ...]
    hits: bool = False
    """Whether to report which images every mix gets right."""

    @property
    def mentioned(self) -> frozenset[str]:
        """Names of all checkpoints in the question."""
        return frozenset(name for mix in self.mixes for name, _ in mix.weights)


class FirstAtLeast(FrozenModel):
    """Question: the first mix, in order, that reaches `at_least`. Answer: `FirstResult`."""

    kind: Literal["first"] = "first"
    mixes: tuple[Mix, ...]
    at_least: float
    strict: bool = False
    """Whether a score equal to `at_least` is too low."""

    def is_met_by(self, score: float) -> bool:
        return score > self.at_least if self.strict else score >= self.at_least

    @property
    def mentioned(self) -> frozenset[str]:
        return frozenset(name for mix in self.mixes for name, _ in mix.weights)


class TasteResults(FrozenModel):
    kind: Literal["tastings"] = "tastings"
    scores: tuple[float, ...]
    hits: tuple[str | None, ...] = ()
    """`TasteResult.hits` of every mix. Empty: not asked for."""
    nll: tuple[float | None, ...] = ()
    """`TasteResult.nll` of every mix."""


class FirstResult(FrozenModel):
    """Place of the accepted mix, and the results up to and including it. None: no mix."""

    kind: Literal["found"] = "found"
    index: int | None
    tried: tuple[TasteResult, ...]


class GramMatrices(FrozenModel):
    """Question: inner products of the displacements from the base. Answer: `GramResult`."""

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
    """Per tensor <theta_i - theta_base, theta_j - theta_base> for i <= j, row by row, in float64.

    Only weights count, not integer tensors or BatchNorm statistics.
    """

    kind: Literal["grams"] = "grams"
    tensors: dict[str, tuple[float, ...]]


class MixGradient(FrozenModel):
    """Question: the gradient of a mix's loss, on a batch of the selection split, by its weights.

    It takes one backward pass through one blended model. BatchNorm statistics are blended like
    weights here. Answer: `MixGradientResult`.
    """

    kind: Literal["gradient"] = "gradient"
    mix: Mix
    components: tuple[str, ...]
    """Prefixes that have a weight of their own. `""`: all tensors without a longer prefix."""
    epoch: int
    """Epoch, which shuffles the selection split together with the experiment's seed."""
    batch: int
    batch_size: int
    temperature: float = 1.0
    """Factor of the logits."""

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
    """d loss / d weight, divisor included: a row per component, a column per checkpoint of the
    mix."""
    temperature: float
    """d loss / d temperature"""


Question = Annotated[Taste | FirstAtLeast | GramMatrices | MixGradient, Field(discriminator="kind")]
Answer = Annotated[
    TasteResults | FirstResult | GramResult | MixGradientResult, Field(discriminator="kind")
]
