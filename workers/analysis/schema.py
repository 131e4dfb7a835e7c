"""The schema of `analysis.json`, which holds one `Analysis`.

    cached predictions --> calibration, classes, bias and variance, distances, map
    checkpoints ---------> angles between ingredients, distance to the base

Nothing is selected by it and no image is read for it. Ids are those of results.json: an ingredient
is the `representative` of a run, a soup `soup/...`, an ensemble `soft_voting` or `stacking`.
Fractions are 0..1, losses in nats; a number that is not finite is null.
"""

from typing import TypedDict

ANALYSIS_SCHEMA = 1

Matrix = list[list[float | None]]
"""Row by row; rows and columns in the order of `ids` in the same object."""


class Model(TypedDict):
    id: str
    kind: str
    """`ingredient`, `soup` or `ensemble`"""
    label: str
    """The run's id, the recipe's label, the ensemble's id."""
    cohort: str | None
    """None for an ensemble."""
    temperature: float | None
    """Divisor of the logits that minimises the negative log-likelihood of the selection split (Guo
    et al., 2017). None: the logits are not finite, or the model was stacked on that split."""


class Calibration(TypedDict):
    """`scaled`: after division by the model's temperature; null if it has none."""

    nll: float | None
    ece: float | None
    nll_scaled: float | None
    ece_scaled: float | None


class Reliability(TypedDict):
    """15 bins of confidence: bin b holds (b/15, (b+1)/15]. Null: the bin is empty."""

    count: list[int]
    confidence: list[float | None]
    """Mean confidence of the images in the bin."""
    accuracy: list[float | None]


class OnSplit(TypedDict):
    """A model on a split."""

    top1: float
    per_class: list[float | None]
    """Recall by class, in the order of `classes` of results.json. Null: the split has no image of
    the class."""
    worst_class: float | None
    """The lowest of them."""
    calibration: Calibration


class Detail(TypedDict):
    """More about the best single model and the served soup."""

    confusion: list[list[int]]
    """Images by [true class][predicted class]; images with a NaN logit are left out."""
    reliability: Reliability
    reliability_scaled: Reliability
    """After temperature scaling."""


class BiasVariance(TypedDict):
    """Over the runs of a cohort, averaged over images; runs differ in what the sweep varies.

    0-1 loss (Domingos, 2000): mean prediction y* = the most frequent class, the lowest of equals;
    `bias` = share of images with y* wrong; `variance` = P(prediction != y*), of which `unbiased` on
    images with y* right and `biased` where it is wrong: `loss` = bias + unbiased - `flipped`, with
    `flipped` the part of `biased` in which the other prediction is the true class.
    Log loss (Heskes, 1998): pbar proportional to exp(E log p), which is soft voting;
    `nll` = `nll_bias` + `nll_variance` = KL(y||pbar) + E KL(pbar||p).
    """

    num_models: int
    loss: float
    bias: float
    variance: float
    unbiased: float
    biased: float
    flipped: float
    nll: float | None
    nll_bias: float | None
    nll_variance: float | None


class Distances(TypedDict):
    """Distances between models by their predictions on `num_images` images of the split."""

    ids: list[str]
    num_images: int
    """All, or evenly spaced ones if all do not fit into memory."""
    disagreement: Matrix
    """Share of images with different predicted classes."""
    symmetric_cross_entropy: Matrix
    """-E sum_c (p log q + q log p). The diagonal is 0 as published, though equal models are not."""
    jeffreys: Matrix
    """E [KL(p||q) + KL(q||p)], nats: the former less both entropies; 0 for equal models."""


class Map(TypedDict):
    """Points in two dimensions whose distances approximate the roots of the Jeffreys divergences.

    Metric multidimensional scaling, in nats^(1/2); only distances have a meaning.
    """

    ids: list[str]
    x: list[float]
    y: list[float]
    stress: float
    """Kruskal's stress-1 of the distances: 0 is a perfect map, 0.2 a poor one."""


class Paired(TypedDict):
    """The served soup and the best single model, image by image."""

    only_single: int
    """Images that the single model alone gets right."""
    only_soup: int
    detectable: float
    """Gain in top-1 that a split of this size shows with 95 % confidence and a power of 80 %, for
    models that differ as often as here."""


class SplitAnalysis(TypedDict):
    count: int
    models: dict[str, OnSplit]
    """Models by id; all of `Analysis.models`, without an ensemble that was fitted on this split."""
    details: dict[str, Detail]
    """Details by id: the best single model and the served soup."""
    bias_variance: dict[str, BiasVariance]
    """Results by cohort id; cohorts with at least two ingredients."""
    distances: Distances
    map: Map | None
    """None: fewer than three models."""
    paired: Paired | None
    """None: no soup is served, or it is the best single model."""


class ComponentGeometry(TypedDict):
    prefix: str
    """Dotted module path; "" is the rest."""
    num_values: int
    distance: list[float]
    """Euclidean distance of each ingredient to the base."""
    cosines: Matrix
    """Cosines of displacements from the base. Null: an ingredient is equal to the base."""


class Geometry(TypedDict):
    """Weights of a cohort's ingredients relative to their base, without BatchNorm statistics."""

    cohort: str
    base: str
    ids: list[str]
    base_norm: float
    distance: list[float]
    cosines: Matrix
    """Cosines over all weights together."""
    components: list[ComponentGeometry]
    """Components in the order the model executes them."""


class Barrier(TypedDict):
    """The straight line from the best single model to the served soup, on the selection split."""

    single: str
    soup: str
    fraction: list[float]
    """0 is the single model, 1 the soup."""
    score: list[float | None]
    """Selection score, higher is better."""
    height: float | None
    """Lower score of both ends less the lowest score between them; negative: no barrier."""


class Analysis(TypedDict):
    schema: int
    key: str
    metric: str
    """`soup.metric`; the metric of `Barrier.score`."""
    classes: list[str]
    best_single: str
    served: str | None
    models: list[Model]
    """Ingredients in configured order, then soups, then ensembles."""
    left_out: list[str]
    """Ids of ingredients beyond the best few, which are not analysed."""
    splits: dict[str, SplitAnalysis]
    geometry: list[Geometry]
    """Cohorts with at least two ingredients."""
    barrier: Barrier | None
