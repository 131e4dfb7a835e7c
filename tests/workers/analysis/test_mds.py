"""The map of models: exact where an exact one exists, and reproducible."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from workers.analysis.mds import kruskal_stress, mds_map

IDS = [f"m{i}" for i in range(6)]


def places_of(found: dict[str, object]) -> np.ndarray:
    return np.array([found["x"], found["y"]]).T


def test_points_of_a_plane_are_found_again_up_to_a_rotation() -> None:
    places = np.random.default_rng(0).normal(size=(6, 2)) * [3, 1]
    apart = cdist(places, places)
    found = mds_map(IDS, apart**2, seed=0)
    np.testing.assert_allclose(cdist(places_of(found), places_of(found)), apart, atol=0.02)  # type: ignore[arg-type]
    assert found["stress"] < 0.01 and found["ids"] == IDS
    assert np.var(found["x"]) > np.var(found["y"])
    assert max(found["x"], key=abs) > 0 and max(found["y"], key=abs) > 0


def test_the_same_models_always_have_the_same_map() -> None:
    rng = np.random.default_rng(1)
    apart = rng.uniform(1, 2, size=(6, 6))
    apart = np.triu(apart, 1) + np.triu(apart, 1).T
    assert mds_map(IDS, apart, seed=3) == mds_map(IDS, apart, seed=3)


def test_equal_models_are_one_point() -> None:
    found = mds_map(IDS, np.zeros((6, 6)), seed=0)
    assert found["stress"] == 0
    assert max(map(abs, [*found["x"], *found["y"]])) == pytest.approx(0, abs=1e-3)


def test_stress_is_kruskals() -> None:
    places = np.array([[0.0, 0.0], [3.0, 4.0]])
    wanted = np.array([[0.0, 4.0], [4.0, 0.0]])
    assert kruskal_stress(places, wanted) == pytest.approx(np.sqrt(1 / 16))
