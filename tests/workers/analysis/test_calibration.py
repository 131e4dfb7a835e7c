"""Temperature, reliability and confusion, against scikit-learn and plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics

from tests.workers.analysis.synthetic_logits import labels_of, logits_of
from workers.analysis.calibration import (
    confusion_matrix,
    detail,
    fit_temperature,
    on_split,
    reliability_bins,
)
from workers.scoring.metrics import ece, nll, predictions, score


def test_the_fitted_temperature_undoes_a_factor_of_the_logits() -> None:
    """Labels are drawn from the model's probabilities, so it is calibrated."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits, axis=1)])
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=0.05)
    found = fit_temperature(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.05)
    assert ece(3 * logits / found, labels) < 0.02 < ece(3 * logits, labels)


@given(st.integers(0, 10_000), st.floats(0.05, 20))
def test_a_temperature_is_never_worse_than_one_and_no_neighbour_is_better(
    seed: int, heat: float
) -> None:
    labels = labels_of(seed, count=30)
    logits = logits_of(seed, labels, heat=heat)
    found = fit_temperature(logits, labels)
    assert found is not None
    wide = logits.astype(np.float64)
    loss = nll(wide / found, labels)
    assert loss <= nll(wide, labels)
    assert all(loss <= nll(wide / (found * by), labels) + 1e-9 for by in (0.9, 0.99, 1.01, 1.1))
    np.testing.assert_array_equal(predictions(wide / found), predictions(logits))


def test_a_broken_model_has_no_temperature() -> None:
    logits = np.array([[0.0, np.nan], [1.0, 0.0]])
    assert fit_temperature(logits, np.array([0, 1])) is None
    assert on_split(logits, np.array([0, 1]), 2, None)["calibration"]["nll"] is not None


def test_calibration_before_and_after() -> None:
    labels = labels_of(1)
    logits = logits_of(1, labels, heat=4)
    found = on_split(logits, labels, 5, 4.0)
    before, after = score(logits, labels), score(logits.astype(np.float64) / 4, labels)
    assert found["calibration"] == {
        "nll": before.nll,
        "ece": before.ece,
        "nll_scaled": after.nll,
        "ece_scaled": after.ece,
    }
    assert found["calibration"]["nll_scaled"] == pytest.approx(
        metrics.log_loss(labels, softmax(logits.astype(np.float64) / 4, axis=1))
    )
    assert (found["top1"], found["worst_class"]) == (before.top1, before.worst_class)


def test_reliability_by_a_plain_loop_and_its_gaps_are_the_calibration_error() -> None:
    labels = labels_of(2, count=400)
    logits = logits_of(2, labels, heat=2)
    found = reliability_bins(logits, labels)
    sure, said = softmax(logits.astype(np.float64), axis=1).max(axis=1), logits.argmax(axis=1)
    total = 0.0
    for index in range(15):
        inside = (sure > index / 15) & (sure <= (index + 1) / 15)
        assert found["count"][index] == inside.sum()
        if not inside.any():
            assert found["accuracy"][index] is None and found["confidence"][index] is None
            continue
        confidence, accuracy = found["confidence"][index], found["accuracy"][index]
        assert confidence == pytest.approx(sure[inside].mean())
        assert accuracy == pytest.approx((said == labels)[inside].mean())
        total += inside.sum() * abs(sure[inside].mean() - (said == labels)[inside].mean())
    assert ece(logits, labels) == pytest.approx(total / len(labels))
    assert sum(found["count"]) == len(labels)


def test_confusion_is_scikit_learns_and_classes_without_images_have_their_row() -> None:
    labels = labels_of(3, num_classes=4)
    logits = logits_of(3, labels, num_classes=6)
    found = confusion_matrix(logits.argmax(axis=1), labels, 6)
    np.testing.assert_array_equal(
        found, metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=range(6))
    )
    said = detail(logits, labels, 6, None)
    assert said["confusion"] == found.tolist()
    assert said["reliability"] == said["reliability_scaled"]


def test_a_row_without_a_number_is_in_no_column_and_in_no_bin() -> None:
    logits = np.array([[np.nan, 0.0], [0.0, 1.0]])
    found = detail(logits, np.array([0, 1]), 2, None)
    assert found["confusion"] == [[0, 0], [0, 1]]
    assert sum(found["reliability"]["count"]) == 1
