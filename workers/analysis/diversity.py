"""Diversity: whether the members of a round still differ, or have become one.

weights --------------> cosine of what two of them moved from the base   } means over all pairs
cached predictions ---> share of images that two of them label otherwise }
"""

import time
from collections.abc import Iterator

import numpy as np

from workers.analysis.distances import disagreement
from workers.analysis.weight_space import measure_weight_space
from workers.context import WorkerContext
from workers.scoring.metrics import predictions
from workers.storage.predictions import read_predictions
from workers.types import SELECTION, AnyEvent, Diversity, DiversityOrder


def measure_diversity(
    order: DiversityOrder, attempt: int, worker: WorkerContext
) -> Iterator[AnyEvent]:
    """One event. A member alone has no pairs, one that has not moved no direction: None."""
    began, ids = time.monotonic(), [each.id for each in order.members.ingredients]
    labelled = [predictions(read_predictions(worker.store, id_, SELECTION)[2]) for id_ in ids]
    angles = [[np.nan if c is None else c for c in row] for row in _cosines(order, worker)]
    yield Diversity(
        merge=order.merge,
        cosine=mean_of_pairs(np.array(angles)),
        disagreement=mean_of_pairs(disagreement(np.stack(labelled))),
        busy_s=time.monotonic() - began,
    )


def _cosines(order: DiversityOrder, worker: WorkerContext) -> list[list[float | None]]:
    return measure_weight_space(order.members, worker)["cosines"]


def mean_of_pairs(values: np.ndarray) -> float | None:
    """Of the numbers above the diagonal of (K, K); None without pairs, or where one is NaN."""
    above = values[np.triu_indices(len(values), 1)]
    mean = float(above.mean()) if len(above) else float("nan")
    return None if np.isnan(mean) else mean
