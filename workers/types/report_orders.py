"""Orders after the merges: scores, comparisons, analysis, serving and retention."""

from typing import Annotated, Literal

from pydantic import Field

from workers.types.orders import MergeActorOrder, Order
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
    """Score a mix on the path of a recipe. Nothing is written, and nothing waits for it."""

    kind: Literal["point"] = "point"
    cohort: Cohort
    mix: Mix
    ingredients: tuple[Checkpoint, ...]
    """Checkpoints of the mix's members."""
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of its scores beside those of checkpoints. A single model has one name under all
        BatchNorm policies."""
        cohort = self.cohort.family if self.mix.single else self.cohort.id
        return f"mix/{cohort}-{self.mix.key}"

    @staticmethod
    def id_of(name: str) -> str:
        return f"point-{name.removeprefix('mix/')}"

    @property
    def id(self) -> str:
        return self.id_of(self.name)


class CompareOrder(MergeActorOrder):
    """Compare soups and ensembles with the best single model, from cached predictions."""

    kind: Literal["compare"] = "compare"
    best_single: str
    """Checkpoint id, as in the other fields."""
    soups: tuple[str, ...]
    members: tuple[str, ...]
    """Members of the soft-voting ensemble. Empty: no such ensemble."""
    splits: tuple[str, ...]
    stacking: tuple[tuple[str, ...], ...] = ()
    """Groups of members of the stacked classifier: one setting trained on every fold, or a single
    member. Empty: no such classifier."""
    folds: dict[str, int] = {}
    """Fold of every member of `stacking` that has one. Then the classifier is fitted on predictions
    for held-out images, else on the selection split."""

    @property
    def key(self) -> str:
        """Hash of what is compared. Newer fields are left out if empty, so old hashes stay."""
        dump = self.model_dump(mode="json")
        newer = ("stacking", "folds")
        return digest({key: value for key, value in dump.items() if value or key not in newer}, 12)

    @staticmethod
    def id_of(key: str) -> str:
        return f"compare-{key}"

    @property
    def id(self) -> str:
        return self.id_of(self.key)


class AnalysedModel(FrozenModel):
    """A model that is analysed by its cached predictions."""

    id: str
    """Id as in results.json."""
    kind: Literal["ingredient", "soup", "ensemble"]
    label: str
    """Name of the run, the recipe, or the ensemble."""
    cohort: str | None = None
    predictions: str | None = None
    """Id of its predictions, e.g. of the only member of a soup. None: its own id."""


class WeightSpaceGroup(FrozenModel):
    """Ingredients of a cohort that are compared by their weights."""

    cohort: Cohort
    base: Checkpoint
    ingredients: tuple[Checkpoint, ...]
    components: tuple[str, ...]


class DiversityOrder(MergeActorOrder):
    """Measure the diversity of a round's members, by weights and by cached predictions."""

    kind: Literal["diversity"] = "diversity"
    merge: str
    members: WeightSpaceGroup

    @staticmethod
    def id_of(merge: str) -> str:
        return f"diversity-{merge}"

    @property
    def id(self) -> str:
        return self.id_of(self.merge)


class AnalyseOrder(MergeActorOrder):
    """Write `analysis.json` from cached predictions and weights."""

    kind: Literal["analyse"] = "analyse"
    best_single: str
    """Id of one of `subjects`, as is `served`."""
    served: str | None
    subjects: tuple[AnalysedModel, ...]
    not_analysed: Annotated[tuple[str, ...], Field(serialization_alias="left_out")] = ()
    """Ids of ingredients beyond the number that is analysed."""
    weighed: tuple[WeightSpaceGroup, ...] = ()
    splits: tuple[str, ...]
    path: Annotated[tuple[tuple[float, float | None], ...], Field(serialization_alias="way")] = ()
    """(fraction, selection score) on the straight line from the best single to the served soup."""

    @property
    def key(self) -> str:
        """Hash of what is analysed, with the field names of existing ledgers."""
        dump = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return digest(dump, 12)

    @staticmethod
    def id_of(key: str) -> str:
        return f"analyse-{key}"

    @property
    def id(self) -> str:
        return self.id_of(self.key)


class ServeOrder(MergeActorOrder):
    """Check a soup and write its README; then the driver copies both to `soup/`."""

    kind: Literal["serve"] = "serve"
    soup: Checkpoint

    @staticmethod
    def id_of(soup: str) -> str:
        return f"serve-{soup.removeprefix('soup/')}"

    @property
    def id(self) -> str:
        return self.id_of(self.soup.name)


class RetireOrder(MergeActorOrder):
    """Delete checkpoints that no merge can use any more."""

    kind: Literal["retire"] = "retire"
    checkpoints: tuple[Checkpoint, ...]

    @staticmethod
    def id_of(checkpoints: tuple[str, ...]) -> str:
        """`checkpoints` are ids."""
        return f"retire-{digest(list(checkpoints), 12)}"

    @property
    def id(self) -> str:
        return self.id_of(tuple(checkpoint.id for checkpoint in self.checkpoints))
