"""Angles: in which directions the ingredients went from their base, and how far.

Inner products of the displacements come per tensor; those of a component are the sums over its
tensors, and lengths and cosines follow from them (Wortsman et al., 2022, section 3.3).
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


def measure_weight_space(weighed: WeightSpaceGroup, worker: WorkerContext) -> Geometry:
    """Reads every checkpoint once, side by side, a block of each at a time."""
    base, others = weighed.base, weighed.ingredients
    skipped = statistics(worker.model(weighed.cohort.model))
    with ExitStack() as opened:
        sources = {
            each.name: opened.enter_context(open_weights(worker.store, each))
            for each in (base, *others)
        }
        names = tuple(each.name for each in others)
        grams = grams_of(sources, names, base.name, skipped, worker)
        sizes, norm = _measured(sources[base.name], grams.tensors)
    whole = squared(grams, grams.tensors, len(others))
    return Geometry(
        cohort=weighed.cohort.id,
        base=base.id,
        ids=[each.id for each in others],
        base_norm=norm,
        distance=lengths(whole),
        cosines=cosines(whole),
        components=[
            _component(prefix, sum(sizes[name] for name in names), inner)
            for prefix, names in parts(grams.tensors, weighed.components).items()
            for inner in [squared(grams, names, len(others))]
        ],
    )


def _measured(base: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, int], float]:
    """Numbers in each tensor, and the length of all together."""
    sizes = {name: base[name].numel() for name in names}
    lengths = (float(torch.linalg.vector_norm(base[name], dtype=torch.float64)) for name in sizes)
    return sizes, math.hypot(*lengths)


def _component(prefix: str, num_values: int, inner: np.ndarray) -> ComponentGeometry:
    return ComponentGeometry(
        prefix=prefix, num_values=num_values, distance=lengths(inner), cosines=cosines(inner)
    )


def parts(tensors: Iterable[str], prefixes: Sequence[str]) -> dict[str, list[str]]:
    """Tensors by component, in order of the prefixes; `""` has the rest, if there is any."""
    found: dict[str, list[str]] = {prefix: [] for prefix in (*prefixes, "")}
    for name in tensors:
        found[component_of(name, prefixes) or ""].append(name)
    return {prefix: names for prefix, names in found.items() if names}


def squared(grams: GramResult, names: Iterable[str], count: int) -> np.ndarray:
    """(K, K) inner products over these tensors."""
    total = np.zeros(count * (count + 1) // 2)
    for name in names:
        total += grams.tensors[name]
    return symmetric(total, count)


def lengths(inner: np.ndarray) -> list[float]:
    found: list[float] = np.sqrt(np.maximum(np.diag(inner), 0.0)).tolist()
    return found


def cosines(inner: np.ndarray) -> list[list[float | None]]:
    """NaN for a displacement of length zero."""
    length = np.sqrt(np.maximum(np.diag(inner), 0.0))
    scale = np.outer(length, length)
    nothing = np.full_like(inner, np.nan)
    found = np.divide(inner, scale, out=nothing, where=scale > 0).clip(-1.0, 1.0)
    rows: list[list[float | None]] = found.tolist()
    return rows
