"""What a recipe sees, asks and returns. A recipe has no way to name a report split."""

from typing import Annotated, Literal

from pydantic import Field

from workers.types.nouns import Mix, Value


class Ingredient(Value):
    """A candidate as a recipe sees it: a name and its score on the selection split."""

    name: str
    run: str
    score: float


class Tasting(Value):
    """A mix scored on the selection split, completely or until it could not reach the bar."""

    score: float | None
    """Selection score (higher is better); None when stopped early."""
    at_most: float
    """Proven upper bound; equals `score` when complete."""
    samples: int
    """Images forwarded to know it."""


class Decision(Value):
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


class Soup(Value):
    """What a recipe returns."""

    mix: Mix
    score: float | None = None
    """Selection score, when the recipe learned it."""
    decisions: tuple[Decision, ...] = ()


class Taste(Value):
    """Scores of all mixes on the selection split. Answer: `Tastings`, in order."""

    kind: Literal["taste"] = "taste"
    mixes: tuple[Mix, ...]


class First(Value):
    """The first mix in order that reaches the bar. Answer: `Found`."""

    kind: Literal["first"] = "first"
    mixes: tuple[Mix, ...]
    at_least: float
    strict: bool = False
    """The bar itself is not enough."""

    def is_met_by(self, score: float) -> bool:
        return score > self.at_least if self.strict else score >= self.at_least


class Tastings(Value):
    kind: Literal["tastings"] = "tastings"
    scores: tuple[float, ...]


class Found(Value):
    """`tried` are the tastings in order, up to and including the accepted one."""

    kind: Literal["found"] = "found"
    index: int | None
    tried: tuple[Tasting, ...]


Question = Annotated[Taste | First, Field(discriminator="kind")]
Answer = Annotated[Tastings | Found, Field(discriminator="kind")]
