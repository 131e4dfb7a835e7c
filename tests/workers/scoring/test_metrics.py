"""Metrics against scikit-learn and values worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import bdtr
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from workers.scoring.metrics import class_accuracies, ece, mcnemar, pack_hits, score, unpack_hits

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(2, 6)),
    elements=st.floats(-30, 30, width=32),
)


@given(LOGITS, st.integers(0, 2**32 - 1))
def test_agrees_with_scikit_learn(logits: Any, seed: int) -> None:
    num, classes = logits.shape
    labels = np.random.default_rng(seed).integers(0, classes, num)
    got = score(logits, labels)
    wide = logits.astype(np.float64)
    shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    assert got.count == num
    assert got.top1 == accuracy_score(labels, predicted)
    assert got.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    recalls = recall_score(labels, predicted, labels=np.unique(labels), average=None)
    assert got.worst_class == pytest.approx(recalls.min())
    if probabilities[np.arange(num), labels].min() > 1e-12:  # scikit-learn clips below
        expected = log_loss(labels, probabilities, labels=list(range(classes)))
        assert got.nll == pytest.approx(expected, abs=1e-9)
    assert got.ece is not None and 0 <= got.ece <= 1


@given(LOGITS, st.integers(0, 5), st.floats(-5, 5, width=32))
def test_adding_a_constant_to_a_row_changes_no_calibration(
    logits: Any, seed: int, constant: float
) -> None:
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    wide = logits.astype(np.float64)
    moved = score(wide + constant, labels)
    assert moved.nll == pytest.approx(score(wide, labels).nll, abs=1e-9)


def test_equal_logits_predict_the_lowest_class() -> None:
    got = score(np.zeros((4, 3), np.float32), np.array([0, 0, 1, 2]))
    assert got.top1 == 0.5
    assert got.nll == pytest.approx(math.log(3))
    # Confidence 1/3 everywhere, half of it right.
    assert got.ece == pytest.approx(0.5 - 1 / 3)
    # F1 of class 0 is 2/3; classes 1 and 2 have none: mean 2/9.
    assert got.macro_f1 == pytest.approx(2 / 9)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.65, 0.35], [0.3, 0.7]])
    labels = np.array([0, 1, 0, 1])
    # Two bins: {0.9, 0.9} half right, gap 0.4; {0.65} right and {0.7} right, apart from each other.
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.65) + abs(1 - 0.7)) / 4
    assert ece(np.log(probabilities), labels) == pytest.approx(expected)


def test_classes_that_nobody_has_or_predicts_do_not_count() -> None:
    logits = np.eye(5)[[0, 1, 1]] * 9
    assert score(logits, np.array([0, 1, 0])).macro_f1 == pytest.approx(2 / 3)


def test_a_nan_row_is_wrong_and_leaves_no_likelihood() -> None:
    logits = np.array([[5.0, 0.0], [np.nan, 0.0]], np.float32)
    got = score(logits, np.array([0, 0]))
    assert got.top1 == 0.5
    assert got.macro_f1 is None and got.nll is None and got.ece is None


def test_an_impossible_label_has_no_finite_likelihood() -> None:
    got = score(np.array([[0.0, -np.inf]]), np.array([1]))
    assert got.top1 == 0.0 and got.nll is None and got.ece == pytest.approx(1.0)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        score(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_a_class_without_images_has_no_accuracy_and_is_not_the_worst() -> None:
    predicted, labels = np.array([0, 2, 2, 1]), np.array([0, 0, 2, 2])
    found = class_accuracies(predicted, labels, 4)
    np.testing.assert_array_equal(found, [0.5, np.nan, 0.5, np.nan])
    assert score(np.eye(4)[predicted], labels).worst_class == 0.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test_of_what_only_one_gets_right(
    rights: list[tuple[bool, bool]],
) -> None:
    ours, theirs = (np.array(each) for each in zip(*rights, strict=True))
    one, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    expected = binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert mcnemar(ours, theirs) == (one, other, pytest.approx(expected, rel=1e-12))
    packed = unpack_hits(pack_hits(ours)), unpack_hits(pack_hits(theirs))
    assert mcnemar(*packed) == mcnemar(ours, theirs)
    # To the last bit, because results.json holds it.
    p_value = 2 * float(bdtr(min(one, other), one + other, 0.5)) if one + other else 1.0
    assert mcnemar(theirs, ours) == (other, one, min(1.0, p_value))


@given(st.lists(st.booleans(), max_size=40))
def test_hits_are_packed_eight_to_two_digits_the_first_the_highest_bit(hits: list[bool]) -> None:
    padded = hits + [False] * (-len(hits) % 8)
    digits = pack_hits(np.array(hits, bool))
    bits = "".join("01"[hit] for hit in padded)
    assert digits == (f"{int(bits, 2):0{len(bits) // 4}x}" if bits else "")
    assert unpack_hits(digits).tolist() == padded
