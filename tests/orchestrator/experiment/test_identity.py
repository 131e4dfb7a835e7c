"""The same command continues; a changed config is refused with the difference."""

import json
from typing import Any

import pytest

from orchestrator.config import Experiment, dump, read
from orchestrator.config.sections import EnsembleConfig
from orchestrator.experiment.identity import (
    additions,
    check,
    identity,
    kept_values,
    with_extensions,
    with_stored_values,
)
from workers.config.train import TrainConfig
from workers.errors import UserError

GRID = {"space": {"train.lr": [0.1, 0.2]}}
RANDOM = {"sampler": "random", "num_runs": 3, "space": {"train.lr": {"uniform": [0.1, 0.2]}}}


def _experiment(sweep: dict[str, Any] | None = None, **more: Any) -> Experiment:
    parts = {"name": "x", "data": {"source": "digits"}, "model": {"name": "test_resnet"}}
    return Experiment.model_validate({**parts, **more, **({"sweep": sweep} if sweep else {})})


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
    "mutable",
    [
        {"storage": "/other"},
        {"fleet": {"max_concurrent_runs": 1}},
        {"fleet": {"max_failures": 9, "heartbeat_s": 5, "grace_s": 9, "max_hours": 1}},
        {"fleet": {"env": {"A": "1"}}},
    ],
)
def test_keys_that_do_not_affect_the_result_may_change(mutable: dict[str, Any]) -> None:
    check(identity(_experiment()), _experiment(**mutable))
    check(identity(_experiment(**mutable)), _experiment())


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
def test_any_other_change_is_refused_with_the_difference(
    change: dict[str, Any], shown: str
) -> None:
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


def test_an_ensemble_may_be_added_but_not_removed() -> None:
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
    with pytest.raises(UserError, match="experiment x .*version.*--name OTHER"):
        check({**identity(_experiment()), "future": 1}, _experiment())


def test_an_added_recipe_does_not_take_the_name_of_another() -> None:
    loose, strict = "greedy", {"greedy": {"tie": "strict"}}
    old = _experiment(soup={"recipes": ["best", strict]})
    check(identity(old), _experiment(soup={"recipes": ["best", strict, loose]}), True)
    swapped = _experiment(soup={"recipes": ["best", loose, strict]})
    assert "soup.recipes" in _refusal(old, swapped, extend=True)


def test_recipes_may_be_added_with_extend_but_not_removed() -> None:
    old = _experiment(soup={"recipes": ["best", "greedy"]})
    more = _experiment(GRID, soup={"recipes": ["best", "model_stock", "greedy"]})
    assert "--extend" in _refusal(old, _experiment(soup={"recipes": ["greedy", "best", "uniform"]}))
    check(identity(old), _experiment(soup={"recipes": ["best", "greedy", "model_stock"]}), True)
    fewer = _experiment({"space": {"train.lr": [0.1]}}, soup={"recipes": ["best", "greedy"]})
    check(identity(fewer), more, True)
    assert "soup.recipes" in _refusal(more, old, extend=True)


# Stored values


def _stored(*missing: str, **more: Any) -> Experiment:
    """The experiment as read from its config.yaml, in which an old version lacks some keys."""
    tree = _experiment(**more).model_dump(mode="json")
    for path in missing:
        section, _, key = path.rpartition(".")
        del (tree[section] if section else tree)[key]
    return read(dump(Experiment.model_validate(tree), named_only=True), "config.yaml")


def test_a_key_that_the_command_does_not_name_keeps_its_stored_value() -> None:
    stored = _stored(train={"lr": 0.5, "epochs": 7}, soup={"tie": "strict"}, seed=3)
    new = _experiment(train={"epochs": 7})
    merged = with_stored_values(new, stored)
    assert (merged.train.lr, merged.soup.tie, merged.seed) == (0.5, "strict", 3)
    check(identity(stored), merged)
    assert kept_values(new, merged) == [
        "seed: 3 (default: 0)",
        "train.lr: 0.5 (default: 0.001)",
        "soup.tie: strict (default: accept)",
    ]


def test_a_named_key_is_never_replaced_even_by_its_default() -> None:
    stored = _stored(train={"lr": 0.5})
    assert "train.lr: 0.5 -> 0.001" in _refusal(
        stored, with_stored_values(_experiment(train={"lr": 1e-3}), stored)
    )


def test_a_key_that_was_not_stored_has_its_default() -> None:
    stored = _stored("train.smoothing", "ensemble", train={"lr": 0.5})
    merged = with_stored_values(_experiment(), stored)
    assert (merged.train.lr, merged.train.smoothing) == (0.5, TrainConfig().smoothing)
    assert merged.ensemble == EnsembleConfig()
    check(identity(stored), merged)


def test_the_storage_is_where_the_experiment_was_found() -> None:
    merged = with_stored_values(_experiment(), _stored(storage="/before/it/was/moved"))
    assert merged.storage == "./runs"


def test_a_recipe_is_one_value_with_its_options() -> None:
    stored = _stored(merge={"method": {"greedy": {"tie": "strict"}}})
    named = with_stored_values(_experiment(merge={"method": "pruned"}), stored)
    assert named.merge.method.name == "pruned" and not named.merge.method.options
    assert with_stored_values(_experiment(), stored).merge.method == stored.merge.method


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"runs": [{"train.lr": 0.2}]}, GRID),
        ({**RANDOM, "num_runs": 2}, RANDOM),
        (GRID, {**GRID, "seeds": 3}),
    ],
)
def test_an_extended_sweep_is_taken_as_a_whole(old: dict[str, Any], new: dict[str, Any]) -> None:
    stored, wider = _stored(sweep=old), _experiment(new)
    merged = with_stored_values(wider, stored)
    assert merged.sweep == wider.sweep
    check(identity(stored), merged, extend=True)


def test_an_unchanged_sweep_keeps_its_stored_values() -> None:
    stored = _stored(sweep={**GRID, "seeds": 3})
    assert with_stored_values(_experiment(GRID), stored).sweep.seeds == 3
    assert with_stored_values(_experiment(), stored).sweep == stored.sweep


def test_a_named_key_that_contradicts_a_stored_one_is_refused_with_the_difference() -> None:
    stored = _stored(merge={"mode": "sync", "method": "pull"})
    merged = with_stored_values(_experiment(merge={"mode": "observe"}), stored)
    assert "merge.mode: sync -> observe" in _refusal(stored, merged)


def test_a_first_default_that_was_stored_gives_way_to_the_present_one() -> None:
    """`fleet.grace_s` was 2; it affects no result."""
    stored = _stored(fleet={"grace_s": 2})
    merged = with_stored_values(_experiment(), stored)
    assert merged.fleet.grace_s is None and not kept_values(_experiment(), merged)
    assert with_stored_values(_experiment(fleet={"grace_s": 2}), stored).fleet.grace_s == 2
    chosen = with_stored_values(_experiment(), _stored(fleet={"grace_s": 30}))
    assert chosen.fleet.grace_s == 30


# Extensions that stay


STRICT = {"greedy": {"tie": "strict"}}


@pytest.mark.parametrize(
    ("command", "gained"),
    [
        ({}, ("recipe `model_stock`", "2 more runs", "ensemble.stacking")),
        ({"sweep": {"seeds": 4}}, ("recipe `model_stock`", "ensemble.stacking")),
        ({"sweep": {"seeds": 5}}, ("recipe `model_stock`", "ensemble.stacking")),
        ({"soup": {"recipes": ["best", "model_stock"]}}, ("2 more runs", "ensemble.stacking")),
        ({"seed": 1}, ("recipe `model_stock`", "2 more runs", "ensemble.stacking")),
    ],
)
def test_what_was_added_stays(command: dict[str, Any], gained: tuple[str, ...]) -> None:
    first = _experiment({"seeds": 2}, soup={"recipes": ["best"]})
    added = {"soup": {"recipes": ["best", "model_stock"]}, "ensemble": {"stacking": True}}
    stored = _experiment({"seeds": 4}, **added)
    new = _experiment(**{"sweep": {"seeds": 2}, "soup": {"recipes": ["best"]}} | command)
    merged = with_extensions(new, stored, identity(first))
    assert additions(new, merged) == gained
    assert with_extensions(new, stored, None) == new


def test_an_extension_keeps_the_recipes_that_others_added() -> None:
    first = _experiment(soup={"recipes": ["greedy"]})
    stored = _experiment(soup={"recipes": ["greedy", STRICT]})
    new = _experiment(soup={"recipes": ["uniform", "greedy"]})
    merged = with_extensions(new, stored, identity(first))
    assert merged.soup.labels == ("greedy", "greedy-2", "uniform")
    check(identity(stored), merged, extend=True)


def test_what_the_experiment_began_with_is_not_added() -> None:
    first = _experiment({"seeds": 2}, soup={"recipes": ["best", "greedy"]})
    stored = _experiment({"seeds": 4}, soup={"recipes": ["best", "greedy", "uniform"]})
    new = _experiment({"seeds": 1}, soup={"recipes": ["best"]})
    merged = with_extensions(new, stored, identity(first))
    assert merged.sweep == new.sweep and merged.soup.labels == ("best", "uniform")
