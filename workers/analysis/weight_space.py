"""Weight space: directions and lengths of the ingredients' displacements from their base.

Inner products of displacements are computed per tensor and summed over the tensors of a component.
Lengths and cosines follow from them (Wortsman et al., 2022, section 3.3).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from workers.analysis.schema import ComponentGeometry, Geometry
from workers.context import WorkerContext
from workers.merging.batchnorm import statistics
from workers.merging.gram import grams_of
from workers.recipes.gram_matrix import symmetric
from workers.storage.checkpoints import open_weights
from workers.types import GramResult, WeightSpaceGroup, component_of


def measure_weight_space(group: WeightSpaceGroup, worker: WorkerContext) -> Geometry:
    """Lengths and cosines of the group. Every checkpoint is read once, block by block."""
    base, ingredients = group.base, group.ingredients
    skipped = statistics(worker.model(group.cohort.model))
    with ExitStack() as opened:
        sources = {
            checkpoint.name: opened.enter_context(open_weights(worker.store, checkpoint))
            for checkpoint in (base, *ingredients)
        }
        names = tuple(ingredient.name for ingredient in ingredients)
        grams = grams_of(sources, names, base.name, skipped, worker)
        sizes, norm = _sizes_and_norm(sources[base.name], grams.tensors)
    whole = inner_products(grams, grams.tensors, len(ingredients))
    return Geometry(
        cohort=group.cohort.id,
        base=base.id,
        ids=[ingredient.id for ingredient in ingredients],
        base_norm=norm,
        distance=lengths(whole),
        cosines=cosines(whole),
        components=[
            _component(prefix, sum(sizes[name] for name in names), inner)
            for prefix, names in tensors_by_component(grams.tensors, group.components).items()
            for inner in [inner_products(grams, names, len(ingredients))]
        ],
    )


def _sizes_and_norm(
    base: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, int], float]:
    """(elements of each tensor, length of all tensors together)."""
    sizes = {name: base[name].numel() for name in names}
    lengths = (float(torch.linalg.vector_norm(base[name], dtype=torch.float64)) for name in sizes)
    return sizes, math.hypot(*lengths)


def _component(prefix: str, num_values: int, inner: np.ndarray) -> ComponentGeometry:
    return ComponentGeometry(
        prefix=prefix, num_values=num_values, distance=lengths(inner), cosines=cosines(inner)
    )


def tensors_by_component(tensors: Iterable[str], prefixes: Sequence[str]) -> dict[str, list[str]]:
    """Tensors by component, in order of the prefixes; `""` has the rest, if there is any."""
    names: dict[str, list[str]] = {prefix: [] for prefix in (*prefixes, "")}
    for name in tensors:
        names[component_of(name, prefixes) or ""].append(name)
    return {prefix: own for prefix, own in names.items() if own}


def inner_products(grams: GramResult, names: Iterable[str], count: int) -> np.ndarray:
    """(K, K) inner products over these tensors."""
    total = np.zeros(count * (count + 1) // 2)
    for name in names:
        total += grams.tensors[name]
    return symmetric(total, count)


def lengths(inner: np.ndarray) -> list[float]:
    values: list[float] = np.sqrt(np.maximum(np.diag(inner), 0.0)).tolist()
    return values


def cosines(inner: np.ndarray) -> list[list[float | None]]:
    """(K, K) cosines; NaN for a displacement of length zero."""
    length = np.sqrt(np.maximum(np.diag(inner), 0.0))
    scale = np.outer(length, length)
    missing = np.full_like(inner, np.nan)
    values = np.divide(inner, scale, out=missing, where=scale > 0).clip(-1.0, 1.0)
    rows: list[list[float | None]] = values.tolist()
    return rows
