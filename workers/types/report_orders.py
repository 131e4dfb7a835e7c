"""Orders that judge what was made, and put it where it is looked for."""

from typing import Annotated, Literal

from pydantic import Field

from workers.types.orders import Order
from workers.types.values import Checkpoint, Cohort, FrozenModel, Mix, digest


class ScoreOrder(Order):
    """Cache the logits of a checkpoint on the splits, and score them."""

    kind: Literal["score"] = "score"
    cohort: Cohort
    checkpoint: Checkpoint
    splits: tuple[str, ...]

    @staticmethod
    def id_of(checkpoint: str) -> str:
        """`checkpoint` is a name."""
        return f"score-{checkpoint.replace('/', '_')}"

    @property
    def id(self) -> str:
        return self.id_of(self.checkpoint.name)


class ScoreMixOrder(Order):
    """Score a mix that a recipe passed on its way. Nothing is written, and nothing waits for it."""

    kind: Literal["point"] = "point"
    cohort: Cohort
    mix: Mix
    ingredients: tuple[Checkpoint, ...]
    """Where the mix's members lie."""
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """Under which its scores are known, beside those of checkpoints: a single model is the same
        under every BatchNorm policy."""
        cohort = self.cohort.family if self.mix.single else self.cohort.id
        return f"mix/{cohort}-{self.mix.key}"

    @staticmethod
    def id_of(name: str) -> str:
        return f"point-{name.removeprefix('mix/')}"

    @property
    def id(self) -> str:
        return self.id_of(self.name)


class CompareOrder(Order):
    """From cached predictions: ensembles, and every soup and ensemble against the best single."""

    kind: Literal["compare"] = "compare"
    best_single: str
    """Checkpoint ids throughout."""
    soups: tuple[str, ...]
    members: tuple[str, ...]
    """Of the soft-voting ensemble; empty for none."""
    splits: tuple[str, ...]
    stacking: tuple[tuple[str, ...], ...] = ()
    """Groups of members of the stacked classifier: a group is one setting, trained on every fold,
    or a single member. Empty for none."""
    folds: dict[str, int] = {}
    """Fold of every member of `stacking` that has one: the classifier is fitted on predictions of
    images that their member has not seen; else on the selection split."""

    @property
    def key(self) -> str:
        """Of what is compared. Fields that came later have no say where they are empty, so that
        comparisons made before them stay known."""
        said = self.model_dump(mode="json")
        later = ("stacking", "folds")
        return digest({key: value for key, value in said.items() if value or key not in later}, 12)

    @staticmethod
    def id_of(key: str) -> str:
        return f"compare-{key}"

    @property
    def id(self) -> str:
        return self.id_of(self.key)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class AnalysedModel(FrozenModel):
    """A model that is analysed by what is cached of it."""

    id: str
    """As in results.json."""
    kind: Literal["ingredient", "soup", "ensemble"]
    label: str
    """The run, the recipe, or the ensemble."""
    cohort: str | None = None
    predictions: str | None = None
    """Under which id they lie, if another: a soup of one member shares the member's."""


class WeightSpaceGroup(FrozenModel):
    """Ingredients of a cohort that are compared by their weights."""

    cohort: Cohort
    base: Checkpoint
    ingredients: tuple[Checkpoint, ...]
    components: tuple[str, ...]


class DiversityOrder(Order):
    """How far apart the members of a round are, by weights and by cached predictions."""

    kind: Literal["diversity"] = "diversity"
    merge: str
    members: WeightSpaceGroup

    @staticmethod
    def id_of(merge: str) -> str:
        return f"diversity-{merge}"

    @property
    def id(self) -> str:
        return self.id_of(self.merge)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class AnalyseOrder(Order):
    """Write `analysis.json`: from cached predictions and weights."""

    kind: Literal["analyse"] = "analyse"
    best_single: str
    """Ids of subjects."""
    served: str | None
    subjects: tuple[AnalysedModel, ...]
    not_analysed: Annotated[tuple[str, ...], Field(serialization_alias="left_out")] = ()
    """Ids of ingredients that are too many to look at."""
    weighed: tuple[WeightSpaceGroup, ...] = ()
    splits: tuple[str, ...]
    path: Annotated[tuple[tuple[float, float | None], ...], Field(serialization_alias="way")] = ()
    """(fraction, selection score) on the straight line from the best single to the served soup."""

    @property
    def key(self) -> str:
        """Hash of what is analysed, under the names that ledgers know."""
        dump = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return digest(dump, 12)

    @staticmethod
    def id_of(key: str) -> str:
        return f"analyse-{key}"

    @property
    def id(self) -> str:
        return self.id_of(self.key)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class ServeOrder(Order):
    """Copy a soup to `soup/`, with a README of its own."""

    kind: Literal["serve"] = "serve"
    soup: Checkpoint

    @staticmethod
    def id_of(soup: str) -> str:
        return f"serve-{soup.removeprefix('soup/')}"

    @property
    def id(self) -> str:
        return self.id_of(self.soup.name)

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"


class RetireOrder(Order):
    """Delete checkpoints that nothing can choose any more."""

    kind: Literal["retire"] = "retire"
    checkpoints: tuple[Checkpoint, ...]

    @staticmethod
    def id_of(checkpoints: tuple[str, ...]) -> str:
        """`checkpoints` are ids."""
        return f"retire-{digest(list(checkpoints), 12)}"

    @property
    def id(self) -> str:
        return self.id_of(tuple(checkpoint.id for checkpoint in self.checkpoints))

    @property
    def place(self) -> Literal["slot", "merge"]:
        return "merge"
