"""Events of merges: their ingredients, the questions of recipes, the answers, the soups."""

from functools import cached_property
from typing import Any, Literal

from workers.types.events import Event
from workers.types.recipe_protocol import Answer, Decision, Ingredient, Question, Soup, TasteResult


class MergeOpened(Event):
    """The ingredients of a merge, which are final before its recipe starts."""

    kind: Literal["merge_opened"] = "merge_opened"
    merge: str
    cohort: str
    recipe: str
    options: dict[str, Any] = {}
    ingredients: tuple[Ingredient, ...]
    left_out: tuple[Decision, ...] = ()
    """Checkpoints that do not take part, with the reason."""
    observe: bool
    round: int | None = None
    """Number of the observe or sync round. None: a final merge."""

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
        """Whether members continue from the merged weights."""
        return self.round is not None and not self.observe

    @property
    def label(self) -> str:
        """Name of the recipe for tables, with the BatchNorm policy if several are compared. The
        label of a final merge is the start of its id, which is unique."""
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
    """The driver answers the open question of a merge from the results of tastes."""

    kind: Literal["answered"] = "answered"
    merge: str
    answer: Answer | None = None
    """None: the answer of the `measured` event, which may be long."""


class Tasted(Event):
    kind: Literal["tasted"] = "tasted"
    mix: str
    """Key of the mix."""
    tasting: TasteResult
    cohort: str
    busy_s: float


class Measured(Event):
    """The result of a geometry or a gradient order."""

    kind: Literal["measured"] = "measured"
    key: str
    """Key of the question."""
    cohort: str
    answer: Answer
    samples: int = 0
    """Number of images forwarded."""
    busy_s: float


class Mixed(Event):
    """A recipe returned its soup."""

    kind: Literal["mixed"] = "mixed"
    merge: str
    soup: Soup


class RoundClosed(Event):
    """A sync round is over. Its result is final before any member continues."""

    kind: Literal["round_closed"] = "round_closed"
    merge: str
    soup: str | None
    """Name of the merged weights that members continue from. None: they continue from their own."""
    reason: str


class Abandoned(Event):
    """An observe round that will have no soup. Its ingredients may be deleted from here on."""

    kind: Literal["abandoned"] = "abandoned"
    merge: str
    reason: str


class Rejoined(Event):
    """A member that missed its round continues from the merged weights of the last closed one."""

    kind: Literal["rejoined"] = "rejoined"
    merge: str
    """Id of the round whose merged weights it continues from."""
    step: int
    """The run's own step."""


class Diversity(Event):
    """Diversity of a round's members: means over all pairs."""

    kind: Literal["diversity"] = "diversity"
    merge: str
    cosine: float | None
    """Cosine of their displacements from the base. None: one has not moved, or is alone."""
    disagreement: float | None
    """Share of selection images that they label differently."""
    busy_s: float
