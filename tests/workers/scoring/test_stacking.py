"""Stacking: what the linear classifier learns, and what it never sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.scoring.metrics import nll, score
from workers.scoring.stacking import Stacker, fit


def voters(
    seed: int, count: int, num_classes: int, strengths: tuple[float, ...]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits of models that favour the right class by so much, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    blocks = [rng.normal(size=(count, num_classes)) for _ in strengths]
    for block, strength in zip(blocks, strengths, strict=True):
        block[np.arange(count), labels] += strength
    return blocks, labels


def test_a_model_that_knows_nothing_is_not_listened_to() -> None:
    blocks, labels = voters(0, 2000, 5, (2.0, 0.0))
    stacker = fit(blocks, labels)
    known, noise = (np.abs(part).sum() for part in np.split(stacker.weight, 2, axis=1))
    assert noise < 0.2 * known
    fresh, truth = voters(1, 2000, 5, (2.0, 0.0))
    stacked, voted = score(stacker(fresh), truth), score(sum(fresh) / 2, truth)
    assert stacked.top1 > voted.top1 + 0.05


def test_a_model_that_is_always_off_by_one_class_is_put_right() -> None:
    """What no average of logits can do: class c here is what the model calls c + 1."""
    (block,), labels = voters(0, 3000, 4, (3.0,))
    stacker = fit([np.roll(block, 1, axis=1)], labels)
    (fresh,), truth = voters(1, 1000, 4, (3.0,))
    assert score(stacker([np.roll(fresh, 1, axis=1)]), truth).top1 > 0.9


def test_with_few_images_and_many_classes_it_stays_close_to_soft_voting() -> None:
    """Four hundred inputs a class from six images a class: a free fit scored 0.15 here."""
    strengths = (2.0, 3.0, 4.0, 5.0)
    blocks, labels = voters(0, 600, 100, strengths)
    fresh, truth = voters(1, 2000, 100, strengths)
    stacked, voted = score(fit(blocks, labels)(fresh), truth), score(sum(fresh) / 4, truth)
    assert stacked.top1 > voted.top1 - 0.02


def test_it_is_the_regression_that_scikit_learn_fits_where_images_abound() -> None:
    from sklearn.linear_model import LogisticRegression

    blocks, labels = voters(0, 20_000, 3, (1.0, 1.5))
    fresh, _ = voters(1, 500, 3, (1.0, 1.5))
    plain = LogisticRegression(C=1e6, max_iter=500).fit(np.concatenate(blocks, 1), labels)
    expected = plain.predict_proba(np.concatenate(fresh, 1))
    logits = fit(blocks, labels)(fresh)
    found = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=0.05)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(1, 60), classes=st.integers(2, 6))
def test_any_labels_can_be_fitted_and_shifts_change_nothing(
    seed: int, count: int, classes: int
) -> None:
    """Classes without an image, one image alone, one class alone."""
    blocks, labels = voters(seed, count, classes, (1.0, 2.0))
    stacker = fit(blocks, labels)
    assert np.isfinite(nll(stacker(blocks), labels))
    np.testing.assert_allclose(stacker([b + 7.0 for b in blocks]), stacker(blocks), atol=1e-6)


def test_the_fit_is_the_same_again_and_survives_its_file() -> None:
    blocks, labels = voters(3, 200, 4, (1.0, 1.0))
    one, two = fit(blocks, labels), fit(blocks, labels)
    saved = Stacker.from_bytes(one.to_bytes())
    for stacker in (two, saved):
        assert np.array_equal(stacker.weight, one.weight)
        assert np.array_equal(stacker.bias, one.bias)


@pytest.mark.parametrize("heat", [0.1, 10.0])
def test_the_temperature_of_a_member_does_not_matter(heat: float) -> None:
    blocks, labels = voters(4, 400, 4, (1.0, 2.0))
    as_it_is, heated = fit(blocks, labels)(blocks), [blocks[0] * heat, blocks[1]]
    np.testing.assert_allclose(fit(heated, labels)(heated), as_it_is, atol=0.05)
