"""Events of merges: who takes part, what a recipe asks and is told, what came of it."""

from functools import cached_property
from typing import Any, Literal

from workers.types.events import Event
from workers.types.recipe_protocol import Answer, Decision, Ingredient, Question, Soup, TasteResult


class MergeOpened(Event):
    """Who takes part in a merge, settled before anybody is told."""

    kind: Literal["merge_opened"] = "merge_opened"
    merge: str
    cohort: str
    recipe: str
    options: dict[str, Any] = {}
    ingredients: tuple[Ingredient, ...]
    left_out: tuple[Decision, ...] = ()
    """Who does not take part, and why."""
    observe: bool
    round: int | None = None
    """Number of the observe or sync round; None for a final merge."""

    @staticmethod
    def round_id(series: str, number: int) -> str:
        return f"{series}-{number:04d}"

    @property
    def series(self) -> str:
        """What the ids of all rounds of the same runs have in common."""
        return self.merge.rpartition("-")[0]

    @cached_property
    def scores(self) -> dict[str, float]:
        """Selection score of every ingredient, by name."""
        return {ingredient.name: ingredient.score for ingredient in self.ingredients}

    @property
    def is_final(self) -> bool:
        return self.round is None

    @property
    def is_sync(self) -> bool:
        """Of a round whose members go on from what is merged."""
        return self.round is not None and not self.observe

    @property
    def label(self) -> str:
        """What people call the recipe, with the BatchNorm policy where several are compared; of a
        final merge what its id begins with, which tells one recipe twice apart."""
        label, between, _ = self.merge.rpartition(f"-{self.cohort}-")
        if between and self.round is None:
            return label
        _, at, policy = self.cohort.partition("@")
        return self.recipe.rpartition(":")[2] + at + policy


class Asked(Event):
    kind: Literal["asked"] = "asked"
    merge: str
    question: Question


class Answered(Event):
    """The driver answers the open question of a merge from what tastes have shown."""

    kind: Literal["answered"] = "answered"
    merge: str
    answer: Answer | None = None
    """None: what was measured, which may be long and is in the ledger already."""


class Tasted(Event):
    kind: Literal["tasted"] = "tasted"
    mix: str
    """Key of the mix."""
    tasting: TasteResult
    cohort: str
    busy_s: float


class Measured(Event):
    """What a geometry or a gradient order found."""

    kind: Literal["measured"] = "measured"
    key: str
    """Of the question."""
    cohort: str
    answer: Answer
    samples: int = 0
    """Images forwarded to know it."""
    busy_s: float


class Mixed(Event):
    """A recipe finished."""

    kind: Literal["mixed"] = "mixed"
    merge: str
    soup: Soup


class RoundClosed(Event):
    """A sync round is over, settled before any member goes on."""

    kind: Literal["round_closed"] = "round_closed"
    merge: str
    soup: str | None
    """Name of the merged weights that its members go on from; None: everyone from its own."""
    reason: str


class Rejoined(Event):
    """A member that missed its round goes on from what the newest closed one merged."""

    kind: Literal["rejoined"] = "rejoined"
    merge: str
    """The round it goes on from."""
    step: int
    """Where it stands."""


class Diversity(Event):
    """Means over the pairs of a round's members."""

    kind: Literal["diversity"] = "diversity"
    merge: str
    cosine: float | None
    """Of what they moved from the base; None where one has not moved, or is alone."""
    disagreement: float | None
    """Share of selection images that they label differently."""
    busy_s: float
