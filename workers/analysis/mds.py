"""A map of models by their predictions.

divergences --multidimensional scaling--> two dimensions
"""

from collections.abc import Sequence

import numpy as np

from workers.analysis.schema import Map

STARTS = 4
"""Random starts of the scaling; the best result is taken."""
MAX_ITERATIONS = 500
PRECISION = 1e-9
"""Relative change of the stress below which the scaling ends."""


def mds_map(ids: Sequence[str], jeffreys: np.ndarray, seed: int) -> Map:
    """Metric scaling of the roots of (K, K) divergences, which behave like squared distances.

    The map is rotated so that its first axis is the longer one, and the model farthest out along an
    axis has a positive coordinate: the same models always have the same map.
    """
    wanted = np.sqrt(np.maximum(jeffreys, 0.0))
    points = _rotated(_scaled(wanted, seed)) if wanted.any() else np.zeros((len(wanted), 2))
    return Map(
        ids=list(ids),
        x=points[:, 0].tolist(),
        y=points[:, 1].tolist(),
        stress=kruskal_stress(points, wanted),
    )


def kruskal_stress(points: np.ndarray, wanted: np.ndarray) -> float:
    """Kruskal's stress-1: root of the squared errors over the squared distances wanted."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    total = float((wanted**2).sum())
    return float(np.sqrt(((distances - wanted) ** 2).sum() / total)) if total else 0.0


def _scaled(wanted: np.ndarray, seed: int) -> np.ndarray:
    """(K, 2) points of the best of several starts."""
    from sklearn.manifold import smacof

    points: np.ndarray
    points, _ = smacof(
        wanted,
        n_components=2,
        n_init=STARTS,
        max_iter=MAX_ITERATIONS,
        eps=PRECISION,
        random_state=seed,
        normalized_stress=False,
    )
    return points


def _rotated(points: np.ndarray) -> np.ndarray:
    """The points in the coordinates of their principal axes."""
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    rotated = centred @ axes.T
    signs = np.sign(rotated[np.abs(rotated).argmax(axis=0), [0, 1]])
    result: np.ndarray = rotated * np.where(signs == 0, 1, signs)
    return result
