"""The landscape: a map of models by their predictions.

divergences --MDS--> two dimensions
"""

from collections.abc import Sequence

import numpy as np

from workers.analysis.schema import Map

STARTS = 4
"""Of the scaling; the best is kept."""
MAX_ITERATIONS = 500
PRECISION = 1e-9
"""Share of the stress below which a step is the last."""


def mds_map(ids: Sequence[str], jeffreys: np.ndarray, seed: int) -> Map:
    """Metric scaling of the roots of (K, K) divergences, which behave like squared distances.

    The map is turned so that its first axis is the longer one, and the model farthest out along an
    axis lies on its positive side: the same models always lie the same way.
    """
    apart = np.sqrt(np.maximum(jeffreys, 0.0))
    places = _turned(_scaled(apart, seed)) if apart.any() else np.zeros((len(apart), 2))
    return Map(
        ids=list(ids),
        x=places[:, 0].tolist(),
        y=places[:, 1].tolist(),
        stress=kruskal_stress(places, apart),
    )


def kruskal_stress(places: np.ndarray, apart: np.ndarray) -> float:
    """Kruskal's stress-1: root of the squared errors over the squared distances wanted."""
    found = np.linalg.norm(places[:, None] - places[None], axis=-1)
    total = float((apart**2).sum())
    return float(np.sqrt(((found - apart) ** 2).sum() / total)) if total else 0.0


def _scaled(apart: np.ndarray, seed: int) -> np.ndarray:
    """(K, 2) places of the best of several starts."""
    from sklearn.manifold import smacof

    places: np.ndarray
    places, _ = smacof(
        apart,
        n_components=2,
        n_init=STARTS,
        max_iter=MAX_ITERATIONS,
        eps=PRECISION,
        random_state=seed,
        normalized_stress=False,
    )
    return places


def _turned(places: np.ndarray) -> np.ndarray:
    """Onto its principal axes."""
    centred = places - places.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    turned = centred @ axes.T
    signs = np.sign(turned[np.abs(turned).argmax(axis=0), [0, 1]])
    result: np.ndarray = turned * np.where(signs == 0, 1, signs)
    return result
