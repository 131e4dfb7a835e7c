"""Distances between models, against plain loops and scipy."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from scipy.stats import entropy

from tests.workers.analysis.synthetic_logits import labels_of, logits_of
from workers.analysis.distances import SMALLEST, distances, evenly_spaced, num_images

LABELS = labels_of(0, count=50)
MODELS = {f"m{i}": logits_of(i, LABELS, heat=1 + i / 4) for i in range(4)}
P = {name: softmax(each.astype(np.float64), axis=1) for name, each in MODELS.items()}
"""None of these probabilities is as small as the smallest."""


def test_jeffreys_divergence_is_both_relative_entropies() -> None:
    assert min(p.min() for p in P.values()) > SMALLEST
    found = distances(MODELS)
    assert found["ids"] == list(MODELS) and found["num_images"] == 50
    for i, p in enumerate(P.values()):
        for j, q in enumerate(P.values()):
            expected = (rel_entr(p, q) + rel_entr(q, p)).sum(axis=1).mean()
            assert found["jeffreys"][i][j] == pytest.approx(expected)


def test_the_published_distance_is_more_by_both_entropies() -> None:
    """It is twice the entropy for equal models, except on the diagonal, which is 0."""
    models = MODELS | {"again": MODELS["m1"]}
    found = distances(models)
    entropies = [entropy(p, axis=1).mean() for p in (*P.values(), P["m1"])]
    for i in range(5):
        assert found["symmetric_cross_entropy"][i][i] == 0
        for j in range(5):
            if i == j:
                continue
            apart = found["symmetric_cross_entropy"][i][j]
            assert apart == pytest.approx(found["jeffreys"][i][j] + entropies[i] + entropies[j])
    assert found["jeffreys"][1][4] == 0
    assert found["symmetric_cross_entropy"][1][4] == pytest.approx(2 * entropies[1])


def test_disagreement_is_the_share_of_images_with_other_classes() -> None:
    found = distances(MODELS)["disagreement"]
    for i, one in enumerate(MODELS.values()):
        for j, two in enumerate(MODELS.values()):
            assert found[i][j] == np.mean(one.argmax(1) != two.argmax(1))


def test_confident_models_that_contradict_each_other_have_finite_distances() -> None:
    sure = {"a": np.array([[1e4, 0.0]]), "b": np.array([[0.0, 1e4]])}
    found = distances(sure)
    assert found["disagreement"][0][1] == 1
    assert found["jeffreys"][0][1] == pytest.approx(-2 * np.log(SMALLEST), rel=1e-6)


def test_images_are_evenly_spaced_if_all_are_too_many() -> None:
    assert num_images(4, 10, 500) == 500
    assert num_images(40, 1000, 50_000) == 400
    assert evenly_spaced(10, 10).tolist() == list(range(10))
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
