"""Training is what a plain loop of timm's loader, optimizer and scheduler does."""

from typing import Any

import pytest

from tests.benchmarks.train_rate import loss_curves


@pytest.mark.parametrize(
    "options", [{}, {"opt": "sgd", "lr": 0.05, "smoothing": 0.1, "sched": "tanh"}]
)
def test_losses_are_those_of_a_plain_loop_with_timm(options: dict[str, Any]) -> None:
    ours, plain = loss_curves("test_resnet", **options)
    assert len(ours) == 3 and ours == pytest.approx(plain, rel=1e-4)
