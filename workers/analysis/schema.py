"""Analysis: what the models of an experiment have in common, and what not; the shape of the result.

    cached predictions --> calibration, classes, bias and variance, distances, map
    checkpoints ---------> angles between ingredients, distance to the base

`analysis.json` holds one `Analysis`. Nothing is chosen here and no image is looked at. Ids are
those of results.json: an ingredient is the `representative` of a run, a soup `soup/...`, an
ensemble `soft_voting` or `stacking`. Fractions 0..1, nats; what is no finite number is null.
"""

from typing import TypedDict

ANALYSIS_SCHEMA = 1

Matrix = list[list[float | None]]
"""Row by row; rows and columns in the order of the `ids` beside it."""


class Model(TypedDict):
    id: str
    kind: str
    """`ingredient`, `soup` or `ensemble`"""
    label: str
    """The run's id, the recipe's label, the ensemble's id."""
    cohort: str | None
    """None for an ensemble."""
    temperature: float | None
    """One number that divides the logits; minimises the negative log-likelihood of the selection
    split (Guo et al., 2017). None where the logits are not finite, and for a classifier that was
    stacked on that very split."""


class Calibration(TypedDict):
    """`scaled`: after division of the logits by the model's temperature; null if it has none."""

    nll: float | None
    ece: float | None
    nll_scaled: float | None
    ece_scaled: float | None


class Reliability(TypedDict):
    """15 bins of confidence: bin b holds (b/15, (b+1)/15]. Null where a bin is empty."""

    count: list[int]
    confidence: list[float | None]
    """Mean confidence of the images in the bin."""
    accuracy: list[float | None]


class OnSplit(TypedDict):
    """A model on a split."""

    top1: float
    per_class: list[float | None]
    """Accuracy (recall) by class, in the order of results.json `classes`; null where the split has
    no image of it."""
    worst_class: float | None
    """The lowest of them."""
    calibration: Calibration


class Detail(TypedDict):
    """Of the best single model and of the served soup."""

    confusion: list[list[int]]
    """Images by [true class][predicted class]; one with no number as logit is in no column."""
    reliability: Reliability
    reliability_scaled: Reliability
    """After temperature scaling."""


class BiasVariance(TypedDict):
    """Over the runs of a cohort, averaged over images (runs differ in whatever the sweep set).

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
    """Between models, by their predictions on `num_images` images of the split."""

    ids: list[str]
    num_images: int
    """All, or evenly spaced ones where all would be too much for memory."""
    disagreement: Matrix
    """Share of images with different predicted classes."""
    symmetric_cross_entropy: Matrix
    """-E sum_c (p log q + q log p), the diagonal set to 0 as published; not 0 for equal models."""
    jeffreys: Matrix
    """E [KL(p||q) + KL(q||p)], nats: the one above less both entropies; 0 for equal models."""


class Map(TypedDict):
    """Two dimensions in which distances are about the square roots of the Jeffreys divergences.

    Metric multidimensional scaling, in nats^(1/2); only distances mean anything.
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
    """Gain in top-1 that a split of this size would show (95 % confidence) four times in five, if
    the models differ as often as here."""


class SplitAnalysis(TypedDict):
    count: int
    models: dict[str, OnSplit]
    """By id; every model in `Analysis.models` (a classifier stacked on the selection split is not
    judged there)."""
    details: dict[str, Detail]
    """By id: the best single model and the served soup."""
    bias_variance: dict[str, BiasVariance]
    """By cohort id; of cohorts with at least two ingredients."""
    distances: Distances
    map: Map | None
    """None for fewer than three models."""
    paired: Paired | None
    """None where the served soup is the best single model, or there is none."""


class ComponentGeometry(TypedDict):
    prefix: str
    """Dotted module path; "" is all that no other component names."""
    num_values: int
    distance: list[float]
    """Euclidean distance of each ingredient to the base."""
    cosines: Matrix
    """Of the displacements from the base; null for an ingredient that did not move."""


class Geometry(TypedDict):
    """Weights of a cohort's ingredients, seen from their base; no BatchNorm statistics."""

    cohort: str
    base: str
    ids: list[str]
    base_norm: float
    distance: list[float]
    cosines: Matrix
    """Of all weights together."""
    components: list[ComponentGeometry]
    """In the order the model executes them."""


class Barrier(TypedDict):
    """The straight way from the best single model to the served soup, on the selection split."""

    single: str
    soup: str
    fraction: list[float]
    """0 is the single model, 1 the soup."""
    score: list[float | None]
    """Selection score, higher is better."""
    height: float | None
    """Lower of both ends less the lowest score on the way; negative where the way is higher."""


class Analysis(TypedDict):
    schema: int
    key: str
    metric: str
    """`soup.metric`: of `Barrier.score`."""
    classes: list[str]
    best_single: str
    served: str | None
    models: list[Model]
    """Ingredients in configured order, then soups, then ensembles."""
    left_out: list[str]
    """Ids of ingredients beyond the best few, which are in no matrix, map or geometry."""
    splits: dict[str, SplitAnalysis]
    geometry: list[Geometry]
    """Of cohorts with at least two ingredients."""
    barrier: Barrier | None
