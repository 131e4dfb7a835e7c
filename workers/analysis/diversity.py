"""Diversity: how much the members of a round differ in weights and predictions.

weights --------------> cosine of two displacements from the base         } means over all pairs
cached predictions ---> share of images that two members label differently }
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
    """One event. A mean is None without pairs, a cosine also if a member is equal to the base."""
    began = time.monotonic()
    predicted = [
        predictions(read_predictions(worker.store, member.id, SELECTION)[2])
        for member in order.members.ingredients
    ]
    cosines = measure_weight_space(order.members, worker)["cosines"]
    rows = [[np.nan if value is None else value for value in row] for row in cosines]
    yield Diversity(
        merge=order.merge,
        cosine=mean_of_pairs(np.array(rows)),
        disagreement=mean_of_pairs(disagreement(np.stack(predicted))),
        busy_s=time.monotonic() - began,
    )


def mean_of_pairs(values: np.ndarray) -> float | None:
    """Mean above the diagonal of (K, K) values. None: no pairs, or one is NaN."""
    above = values[np.triu_indices(len(values), 1)]
    mean = float(above.mean()) if len(above) else float("nan")
    return None if np.isnan(mean) else mean
