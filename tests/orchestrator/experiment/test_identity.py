"""The same command continues; a changed config is refused with the difference."""

import json
from typing import Any

import pytest

from orchestrator.config import Experiment, dump, read
from orchestrator.experiment.identity import check, identity
from workers.errors import UserError

GRID = {"space": {"train.lr": [0.1, 0.2]}}
RANDOM = {"sampler": "random", "num_runs": 3, "space": {"train.lr": {"uniform": [0.1, 0.2]}}}


def _experiment(sweep: dict[str, Any] | None = None, **more: Any) -> Experiment:
    parts = {"name": "x", "data": {"source": "digits"}, "model": {"name": "test_resnet"}}
    return Experiment.model_validate({**parts, **more, "sweep": sweep or {}})


def _refusal(old: Experiment, new: Experiment, extend: bool = False) -> str:
    with pytest.raises(UserError) as refused:
        check(identity(old), new, extend)
    return str(refused.value)


def test_identity_is_json_and_leaves_defaults_out() -> None:
    found = identity(_experiment(GRID, storage="elsewhere", train={"lr": 1e-3, "epochs": 2}))
    assert json.loads(json.dumps(found)) == found
    assert found["train"] == {"epochs": 2}
    assert "storage" not in found and "fleet" not in found


def test_the_dumped_config_has_the_same_identity() -> None:
    experiment = _experiment(RANDOM)
    check(identity(read(dump(experiment), "config.yaml")), experiment)


@pytest.mark.parametrize(
    "free",
    [
        {"storage": "/other"},
        {"fleet": {"max_concurrent_runs": 1}},
        {"fleet": {"max_failures": 9, "heartbeat_s": 5, "grace_s": 9, "max_hours": 1}},
        {"fleet": {"env": {"A": "1"}}},
    ],
)
def test_what_has_no_say_in_the_result_may_change(free: dict[str, Any]) -> None:
    check(identity(_experiment()), _experiment(**free))
    check(identity(_experiment(**free)), _experiment())


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"train": {"lr": 0.5}}, "train.lr: 0.001 -> 0.5"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model": {"name": "other"}}, "model.name: test_resnet -> other"),
        ({"fleet": {"cpus_per_run": 2}}, "fleet.cpus_per_run: 1 -> 2"),
        ({"soup": {"recipes": ["best"]}}, "soup.recipes: "),
        ({"soup": {"recipes": ["best", "uniform", {"greedy": {"tie": "strict"}}]}}, "soup.recipes"),
        ({"soup": {"batchnorm": "compare"}}, "soup.batchnorm: auto -> compare"),
        ({"data": {"source": "digits", "ood": {"blur": "b"}}}, "data.ood.blur: absent -> b"),
    ],
)
def test_anything_else_is_refused_with_the_difference(change: dict[str, Any], shown: str) -> None:
    for extend in (False, True):
        sentence = _refusal(_experiment(), _experiment(**change), extend)
        assert shown in sentence and "--name" in sentence and "--extend" not in sentence


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (RANDOM, {**RANDOM, "num_runs": 5}),
        (GRID, {"space": {"train.lr": [0.1, 0.15, 0.2]}}),
        (GRID, {**GRID, "seeds": 3}),
        ({"seeds": [4]}, {"seeds": [1, 4]}),
        (GRID, {"space": {**GRID["space"], "train.epochs": [5, 7]}}),
        ({}, {"space": {"train.lr": [0.1, 1e-3]}}),
        ({"runs": [{}, {}]}, {"runs": [{}, {}, {"seed": 1}, {}]}),
        ({"runs": [{"train.lr": 0.2}]}, GRID),
    ],
)
def test_more_runs_need_extend(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = _experiment(old), _experiment(new)
    assert "--extend" in _refusal(before, after)
    check(identity(before), after, extend=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({**RANDOM, "num_runs": 5}, RANDOM),
        (GRID, {"space": {"train.lr": [0.1]}}),
        (GRID, {"space": {**GRID["space"], "train.epochs": [6, 7]}}),
        (GRID, {**GRID, "seeds": [1, 2]}),
        ({"runs": [{}, {}]}, {"runs": [{}]}),
    ],
)
def test_no_extension_may_lose_a_run(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert "--extend" not in _refusal(_experiment(old), _experiment(new), extend=True)


def test_an_extension_may_change_nothing_else() -> None:
    new = _experiment({**RANDOM, "num_runs": 5}, soup={"metric": "nll"})
    assert "soup.metric: top1 -> nll" in _refusal(_experiment(RANDOM), new, extend=True)


def test_an_ensemble_may_be_added_but_not_taken_away() -> None:
    before, after = _experiment(), _experiment(ensemble={"stacking": True})
    assert "--extend" in _refusal(before, after)
    check(identity(before), after, extend=True)
    assert "--extend" not in _refusal(after, before, extend=True)


def test_folds_may_be_extended_by_seeds_but_not_changed() -> None:
    def folded(folds: int | None, seeds: int) -> Experiment:
        return _experiment({"seeds": seeds}, data={"source": "digits", "folds": folds})

    check(identity(folded(3, 1)), folded(3, 2), extend=True)
    assert "data.folds: 3 -> 4" in _refusal(folded(3, 1), folded(4, 1), extend=True)
    assert "data.folds: None -> 3" in _refusal(folded(None, 1), folded(3, 1), extend=True)


def test_many_differences_are_counted() -> None:
    train = {"lr": 0.5, "epochs": 9, "batch_size": 8, "opt": "sgd", "smoothing": 0.1}
    sentence = _refusal(_experiment(), _experiment(train={**train, "hflip": 0, "reprob": 0.1}))
    assert "; and 1 more; " in sentence


def test_a_config_of_an_unknown_version_is_refused() -> None:
    with pytest.raises(UserError, match="begun by a version of soupfleet"):
        check({**identity(_experiment()), "future": 1}, _experiment())


def test_a_recipe_that_is_added_takes_no_other_ones_name() -> None:
    loose, strict = "greedy", {"greedy": {"tie": "strict"}}
    old = _experiment(soup={"recipes": ["best", strict]})
    check(identity(old), _experiment(soup={"recipes": ["best", strict, loose]}), True)
    swapped = _experiment(soup={"recipes": ["best", loose, strict]})
    assert "soup.recipes" in _refusal(old, swapped, extend=True)


def test_recipes_may_be_added_with_extend_and_none_taken_away() -> None:
    old = _experiment(soup={"recipes": ["best", "greedy"]})
    more = _experiment(GRID, soup={"recipes": ["best", "model_stock", "greedy"]})
    assert "--extend" in _refusal(old, _experiment(soup={"recipes": ["greedy", "best", "uniform"]}))
    check(identity(old), _experiment(soup={"recipes": ["best", "greedy", "model_stock"]}), True)
    fewer = _experiment({"space": {"train.lr": [0.1]}}, soup={"recipes": ["best", "greedy"]})
    check(identity(fewer), more, True)
    assert "soup.recipes" in _refusal(more, old, extend=True)
