"""Documents that are small to write and large to read are refused at once."""

import pytest

from orchestrator.config import yaml_document
from orchestrator.config.yaml_document import MAX_DEPTH
from orchestrator.experiment.sweep import expand
from tests.simulator.experiment import simulated
from workers.errors import UserError

BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "values with its aliases"),
        ("[" * 100_000, "nested more than"),
        ("a:\n" + "".join(f"{' ' * i}a:\n" for i in range(1, MAX_DEPTH + 2)), "nested more than"),
        ("model: &m {kwargs: *m}", "contains itself"),
        (f"seed: {'7' * 5000}", "has 5,000 digits"),
        (f"seed: -{'7' * 5000}", "has 5,001 digits"),
        ("a: " + "x" * (17 << 20), "is longer than"),
    ],
)
def test_a_document_without_bounds_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        yaml_document.parse(text, "x.yaml")


def test_aliases_in_reason_are_read() -> None:
    text = "a: &a {x: &x 1}\nb: [*a, *x]"
    assert yaml_document.parse(text, "x") == {"a": {"x": 1}, "b": [{"x": 1}, 1]}


@pytest.mark.parametrize(
    "sweep",
    [
        {"seeds": 10**9},
        {"sampler": "random", "num_runs": 10**9, "space": {"train.lr": {"uniform": [0.1, 0.2]}}},
        {"space": {f"train.{key}": [0.1] * 100 for key in ("lr", "momentum", "smoothing")}},
    ],
)
def test_a_sweep_of_too_many_runs_is_refused_before_it_is_expanded(sweep: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="more than 20,000 runs"):
        expand(simulated(sweep={"seeds": None, **sweep}).experiment)
