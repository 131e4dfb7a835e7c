"""Class weights, and errors about them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from workers.config.train import TrainConfig
from workers.errors import UserError
from workers.training.loss import class_weights

CLASSES = ("ant", "bee", "cow", "dog")


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_balanced_classes_weigh_the_same_and_images_one_on_average(
    labels: list[int],
) -> None:
    weights = class_weights(TrainConfig(class_weights="balanced"), np.array(labels), CLASSES)
    assert weights is not None and weights.dtype == np.float32 and weights.shape == (4,)
    counts = np.bincount(labels, minlength=4)
    present = np.unique(labels)
    theirs = compute_class_weight("balanced", classes=present, y=np.array(labels))
    assert weights[present] == pytest.approx(theirs)
    assert np.ptp((weights * counts)[present]) == pytest.approx(0, abs=1e-4)
    assert weights[labels].mean() == pytest.approx(1)
    assert (weights[counts == 0] == 1).all()


def test_named_classes_weigh_what_they_are_given_and_others_one() -> None:
    labels = np.array([0, 1, 1])
    weights = class_weights(TrainConfig(class_weights={"dog": 3, "ant": 0.5}), labels, CLASSES)
    assert weights is not None and weights.tolist() == [0.5, 1, 1, 3]
    assert class_weights(TrainConfig(), labels, CLASSES) is None


def test_a_wrong_weight_is_a_users_mistake() -> None:
    for weights, words in (
        ({"dig": 2.0}, "no class 'dig'; nearest: dog"),
        ({"dog": 0.0}, "'dog' weighs 0.0; write a number above 0"),
        ({"dog": float("nan")}, "above 0"),
    ):
        with pytest.raises(UserError, match=f"train.class_weights: .*{words}"):
            class_weights(TrainConfig(class_weights=weights), np.array([0]), CLASSES)
