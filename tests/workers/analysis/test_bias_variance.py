"""Bias and variance: the identities that define them, by plain loops over models and images."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from tests.workers.analysis.synthetic_logits import decompose, labels_of, logits_of
from workers.scoring.metrics import nll

SEEDS = st.integers(0, 10_000)


def models(seed: int, labels: np.ndarray, num_classes: int, num_models: int) -> list[np.ndarray]:
    return [logits_of(seed * 100 + i, labels, num_classes) for i in range(num_models)]


@given(SEEDS, st.integers(2, 6), st.integers(1, 6))
def test_parts_of_the_zero_one_loss_by_a_plain_loop(
    seed: int, num_classes: int, num_models: int
) -> None:
    labels = labels_of(seed, count=20, num_classes=num_classes)
    runs = models(seed, labels, num_classes, num_models)
    loss, bias, unbiased, biased, flipped = 0.0, 0.0, 0.0, 0.0, 0.0
    for n, label in enumerate(labels):
        said = [int(each[n].argmax()) for each in runs]
        count = Counter(said)
        main = min(count, key=lambda c: (-count[c], c))
        varied = sum(each != main for each in said) / num_models
        loss += sum(each != label for each in said) / num_models
        if main == label:
            unbiased += varied
        else:
            bias += 1
            biased += varied
            flipped += count[label] / num_models
    found = decompose(runs, labels, num_classes)
    expected = {
        "loss": loss,
        "bias": bias,
        "unbiased": unbiased,
        "biased": biased,
        "flipped": flipped,
        "variance": unbiased + biased,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value / len(labels))  # type: ignore[literal-required]


@given(SEEDS, st.integers(2, 6), st.integers(1, 6))
def test_zero_one_loss_is_bias_and_unbiased_less_flipped(
    seed: int, num_classes: int, num_models: int
) -> None:
    labels = labels_of(seed, count=20, num_classes=num_classes)
    runs = models(seed, labels, num_classes, num_models)
    found = decompose(runs, labels, num_classes)
    mean_loss = np.mean([np.mean(each.argmax(1) != labels) for each in runs])
    assert found["loss"] == pytest.approx(mean_loss)
    assert found["loss"] == pytest.approx(found["bias"] + found["unbiased"] - found["flipped"])
    if num_classes == 2:  # where the mode is wrong, whatever else is said is right
        assert found["flipped"] == pytest.approx(found["biased"])


@given(SEEDS, st.integers(2, 6), st.integers(1, 6))
def test_log_loss_is_bias_and_variance_exactly(
    seed: int, num_classes: int, num_models: int
) -> None:
    labels = labels_of(seed, count=20, num_classes=num_classes)
    runs = models(seed, labels, num_classes, num_models)
    logs = [log_softmax(each.astype(np.float64), axis=1) for each in runs]
    pbar = softmax(np.mean(logs, axis=0), axis=1)
    variance = np.mean([(pbar * (np.log(pbar) - each)).sum(axis=1) for each in logs])
    found = decompose(runs, labels, num_classes)
    assert found["nll_variance"] == pytest.approx(variance, abs=1e-12)
    assert found["nll_bias"] == pytest.approx(-np.log(pbar[np.arange(20), labels]).mean())
    assert found["nll"] == pytest.approx(np.mean([nll(each, labels) for each in runs]))
    assert found["nll_variance"] >= -1e-12


def test_the_bias_of_the_log_loss_is_the_loss_of_soft_voting() -> None:
    labels = labels_of(0)
    runs = models(0, labels, 5, 4)
    mean = np.mean([each.astype(np.float64) for each in runs], axis=0)
    assert decompose(runs, labels, 5)["nll_bias"] == pytest.approx(nll(mean, labels))


def test_equal_models_do_not_vary() -> None:
    labels = labels_of(0)
    found = decompose([logits_of(0, labels)] * 3, labels, 5)
    assert found["variance"] == found["flipped"] == 0 and found["loss"] == found["bias"]
    assert found["nll_variance"] == pytest.approx(0, abs=1e-12)


def test_a_model_without_numbers_is_wrong_and_leaves_no_likelihood() -> None:
    labels = np.array([0, 1])
    broken = np.full((2, 2), np.nan)
    fine = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = decompose([fine, broken], labels, 2)
    assert (found["loss"], found["bias"], found["unbiased"]) == (0.5, 0.0, 0.5)
    assert found["nll"] is not None and np.isnan(found["nll"])
