"""A sweep expands to the same runs everywhere, and a larger one contains a smaller one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import Experiment
from orchestrator.experiment.sweep import expand
from orchestrator.report import format
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.errors import UserError

SPACE = {
    "train.lr": {"loguniform": [1e-4, 1e-2]},
    "train.smoothing": {"uniform": [0.0, 0.2]},
    "train.epochs": {"int": [2, 4]},
    "train.sched": ["cosine", "poly"],
}


def _experiment(sweep: dict[str, Any], **more: Any) -> Experiment:
    parts = {"name": "x", "data": {"source": "digits"}, "model": {"name": "test_resnet"}}
    return Experiment.model_validate({**parts, **more, "sweep": sweep})


def test_without_a_sweep_there_is_one_run() -> None:
    (run,) = expand(_experiment({}, train={"lr": 0.5}))
    assert run.train.lr == 0.5 and run.params == {} and run.role == "member"


def test_a_grid_has_every_combination_with_the_last_axis_fastest() -> None:
    runs = expand(_experiment({"space": {"train.lr": [0.1, 0.2], "train.epochs": [1, 2]}}))
    assert [(run.train.lr, run.train.epochs) for run in runs] == [
        (0.1, 1),
        (0.1, 2),
        (0.2, 1),
        (0.2, 2),
    ]
    assert runs[0].params == {"train.lr": 0.1, "train.epochs": 1}


def test_a_zip_takes_its_axes_side_by_side() -> None:
    space = {"train.lr": [0.1, 0.2], "model.name": ["a", "b"]}
    runs = expand(_experiment({"sampler": "zip", "space": space}))
    assert [(run.train.lr, run.model.name) for run in runs] == [(0.1, "a"), (0.2, "b")]


def test_a_list_may_be_nested_or_dotted() -> None:
    runs = expand(
        _experiment(
            {
                "runs": [
                    {"train": {"lr": 0.1}, "seed": 3},
                    {"train.lr": 0.2, "model.kwargs.pad_type": "same"},
                    {},
                ]
            }
        )
    )
    assert [run.train.lr for run in runs] == [0.1, 0.2, 1e-3]
    assert runs[0].seed == 3 and runs[0].params == {"train.lr": 0.1, "seed": 3}
    assert runs[1].model.kwargs == {"pad_type": "same"}


def test_each_setting_gets_each_seed() -> None:
    runs = expand(_experiment({"space": {"train.lr": [0.1, 0.2]}, "seeds": 2}))
    assert [(run.train.lr, run.seed) for run in runs] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert [run.seed for run in expand(_experiment({"seeds": [5, 9]}))] == [5, 9]


def test_a_run_listed_twice_is_a_replica_of_the_same_random_streams() -> None:
    first, second, third = expand(_experiment({"runs": [{}, {"train.lr": 1e-3}, {}]}))
    assert [first.replica, second.replica, third.replica] == [0, 1, 2]
    assert len({first.id, second.id, third.id}) == 3
    assert first.stream == third.stream


def test_an_id_is_pinned() -> None:
    # Existing stores are keyed by it: a change would orphan their runs.
    (run,) = expand(_experiment({}))
    assert run.id == "02a4a554"


@pytest.mark.parametrize(
    ("sweep", "ids"),
    [
        (
            {"space": {"train.lr": [0.1, 0.2], "model.name": ["a", "b"]}, "seeds": 2},
            "ff91d767 920e2216 52eae445 317e2516 155253ab a469af3f 42e35eac ea953381",
        ),
        (
            {"runs": [{}, {}, {"train": {"aa": "rand-m7", "crop": [0.5, 1.0]}}]},
            "02a4a554 e218593d 1080a3a7",
        ),
        (
            {
                "sampler": "random",
                "num_runs": 3,
                "space": {"train.lr": {"loguniform": [1e-4, 1e-2]}, "seed": {"int": [0, 99]}},
            },
            "3fe6cafb 108c3144 acea3dd0",
        ),
    ],
)
def test_new_keys_do_not_change_existing_ids(sweep: dict[str, Any], ids: str) -> None:
    assert [run.id for run in expand(_experiment(sweep))] == ids.split()


def test_a_changed_default_does_not_change_existing_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first runs were trained when the default of train.lr was 0.5."""
    monkeypatch.setattr(TrainConfig, "first_defaults", {"lr": 0.5})
    (before,), (after,) = (expand(_experiment({}, train=train)) for train in ({"lr": 0.5}, {}))
    assert (before.train.lr, after.train.lr) == (0.5, 1e-3)
    assert before.id == "02a4a554" and after.id != before.id


FIRST_DEFAULTS = {
    "5": "epochs",
    "32": "batch_size",
    "1": "grad_accum_steps lr_cycle_limit checkpoint_every",
    "'adamw'": "opt",
    "0.001": "lr",
    "0.0": "min_lr smoothing vflip grayscale reprob mixup cutmix drop_path",
    "None": (
        "head_lr layer_decay aa color_jitter affine perspective class_weights clip_grad patience "
        "model_ema_decay weights checkpoint "
    ),
    "0.05": "weight_decay",
    "0.9": "momentum",
    "'cosine'": "sched",
    "1.0": "lr_cycle_mul lr_cycle_decay mixup_prob",
    "10": "decay_epochs",
    "()": "decay_milestones unfreeze",
    "0.1": "decay_rate",
    "2": "patience_epochs",
    "0": "warmup_epochs mixup_off_epoch probe_epochs trunk_epochs",
    "(0.35, 1.0)": "crop",
    "0.5": "hflip mixup_switch_prob",
    "'none'": "amp_dtype",
    "True": "tf32",
    "False": (
        "channels_last grad_checkpointing compile bn_freeze model_ema_warmup weights_ema "
        "pretrained "
    ),
    "'linear'": "head",
    "{}": "kwargs",
    "'zero'": "init",
}
"""First default of every key that ids depend on -> the keys."""


def test_first_defaults_are_pinned() -> None:
    """Ids leave them out. A change of a default adds the old one to `first_defaults`."""
    for section in (TrainConfig, ModelConfig, BaseConfig):
        for default, keys in FIRST_DEFAULTS.items():
            for key in set(keys.split()) & section.model_fields.keys():
                first = section.first_defaults.get(key, section.model_fields[key].default)
                assert repr(first) == default, f"{section.__name__}.first_defaults[{key!r}]"


KEYS = [*TrainConfig.model_fields]


@given(st.lists(st.sampled_from(KEYS), unique=True), st.integers(0, 99))
def test_a_written_default_is_the_same_run(keys: list[str], seed: int) -> None:
    written = {key: value for key, value in TrainConfig().model_dump().items() if key in keys}
    sweep = {"seeds": [seed]}
    ((one,), (other,)) = (expand(_experiment(sweep, train=train)) for train in ({}, written))
    assert one.id == other.id


# Folds and trajectories


def _folded(folds: int, sweep: dict[str, Any], **more: Any) -> Experiment:
    return _experiment(sweep, data={"source": "digits", "folds": folds}, **more)


def test_folds_multiply_every_setting_and_seed() -> None:
    sweep = {"space": {"train.lr": [0.1, 0.2]}, "seeds": 2}
    runs = expand(_folded(3, sweep))
    assert [run.fold for run in runs] == [0, 1, 2] * 4
    assert [(run.train.lr, run.seed) for run in runs[::3]] == [
        (0.1, 0),
        (0.1, 1),
        (0.2, 0),
        (0.2, 1),
    ]
    assert runs[1].params == {"train.lr": 0.1, "seed": 0, "fold": 1}
    assert len({run.id for run in runs} | {run.id for run in expand(_experiment(sweep))}) == 16
    assert len({run.stream for run in runs}) == 12


def test_a_replica_has_its_own_folds() -> None:
    runs = expand(_folded(2, {"runs": [{}, {}]}))
    assert [(run.replica, run.fold) for run in runs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({run.id for run in runs}) == 4


def test_with_folds_a_setting_twice_is_still_refused() -> None:
    with pytest.raises(UserError, match=r"train\.lr .*0\.1 twice"):
        expand(_folded(2, {"space": {"train.lr": [0.1, 0.1]}}))


def test_axes_may_hold_lists() -> None:
    space = {
        "train.crop": ["center", [0.5, 1.0]],
        "train.unfreeze": [[], [{"epoch": 0, "modules": "head"}, {"epoch": 2, "modules": ["all"]}]],
    }
    runs = expand(_experiment({"space": space}))
    assert [run.train.crop for run in runs[::2]] == ["center", (0.5, 1.0)]
    assert [len(run.train.unfreeze) for run in runs[:2]] == [0, 2]
    assert runs[1].train.unfreeze[0].modules == ("head",)
    assert format.params(runs[1].params) == (
        "crop center, unfreeze [{epoch: 0, modules: head}, {epoch: 2, modules: [all]}]"
    )


@pytest.mark.parametrize(
    ("train", "epochs"),
    [
        ({"epochs": 6}, [1, 3, 6]),
        ({"epochs": 6, "checkpoint_every": 2}, [2, 6]),
        ({"epochs": 5, "checkpoint_every": 2}, [4, 5]),
        ({"epochs": 5, "checkpoint_every": "7 steps"}, [5]),
    ],
)
def test_snapshots_at_epochs_with_a_checkpoint_are_accepted(
    train: dict[str, Any], epochs: list[int]
) -> None:
    assert len(expand(_experiment({}, train=train, soup={"ingredients": epochs}))) == 1


@pytest.mark.parametrize(
    ("train", "epochs", "seen"),
    [
        ({"epochs": 6}, [3, 9], "epoch 9; runs have 6 epochs and checkpoint_every: 1"),
        ({"epochs": 6, "checkpoint_every": 2}, [2, 3], "epoch 3; .*checkpoint_every: 2"),
        ({"epochs": 6, "checkpoint_every": "7 steps"}, [3], "epoch 3; .*checkpoint_every: 7 steps"),
    ],
)
def test_an_epoch_without_a_checkpoint_is_refused(
    train: dict[str, Any], epochs: list[int], seen: str
) -> None:
    with pytest.raises(UserError, match=rf"soup\.ingredients: no run .*{seen}"):
        expand(_experiment({}, train=train, soup={"ingredients": epochs}))


def test_an_epoch_that_only_the_longest_run_reaches_is_accepted() -> None:
    sweep = {"space": {"train.epochs": [3, 9]}}
    assert len(expand(_experiment(sweep, soup={"ingredients": [3, 9]}))) == 2


@settings(deadline=None)  # a busy machine is not a failure
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_a_random_run_is_the_same_however_many_there_are(fewer: int, more: int, seed: int) -> None:
    def runs(num_runs: int) -> tuple[Any, ...]:
        sweep = {"sampler": "random", "num_runs": num_runs, "space": SPACE}
        return expand(_experiment(sweep, seed=seed))

    shared = min(fewer, more)
    assert runs(fewer)[:shared] == runs(more)[:shared]


@settings(deadline=None)  # a busy machine is not a failure
@given(st.integers(0, 2**31))
def test_random_runs_stay_within_their_ranges(seed: int) -> None:
    sweep = {"sampler": "random", "num_runs": 20, "space": SPACE}
    for run in expand(_experiment(sweep, seed=seed)):
        assert 1e-4 <= run.train.lr <= 1e-2
        assert 0 <= run.train.smoothing <= 0.2
        assert run.train.epochs in (2, 3, 4)
        assert run.train.sched in ("cosine", "poly")


def test_both_ends_of_an_integer_range_are_drawn() -> None:
    space = {"train.epochs": {"int": [2, 4]}, "train.lr": {"uniform": [0.1, 0.2]}}
    runs = expand(_experiment({"sampler": "random", "num_runs": 60, "space": space}))
    assert {run.train.epochs for run in runs} == {2, 3, 4}


def test_random_runs_are_all_different_until_the_space_is_exhausted() -> None:
    def sweep(num_runs: int) -> dict[str, Any]:
        return {"sampler": "random", "num_runs": num_runs, "space": {"train.lr": [0.1, 0.2, 0.3]}}

    assert {run.train.lr for run in expand(_experiment(sweep(3)))} == {0.1, 0.2, 0.3}
    with pytest.raises(UserError, match=r"num_runs is 4.*train\.lr gave only 3"):
        expand(_experiment(sweep(4)))


def test_the_order_of_the_axes_does_not_change_a_draw() -> None:
    backwards = dict(reversed(SPACE.items()))
    one, other = (
        expand(_experiment({"sampler": "random", "num_runs": 5, "space": space}))
        for space in (SPACE, backwards)
    )
    assert [run.id for run in one] == [run.id for run in other]


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ({"space": {"train.lr": [0.1, 0.1]}}, r"sweep\.space\.train\.lr .*0\.1 twice"),
        ({"space": {"train.lr": [1, "1"]}}, r"same run twice \(train\.lr=1\)"),
        ({"space": {"data.image_size": [32]}}, r"sweep\.space\.data\.image_size: .*train\.\*"),
        ({"space": {"train.learning_rate": [1]}}, r"did you mean train\.lr\?"),
        ({"space": {"lr": [1]}}, r"sweep\.space\.lr: unknown key lr; did you mean train\.lr\?"),
        ({"space": {"train.lr": [0.1, -1]}}, r"train\.lr is -1, but should be greater than 0"),
        ({"space": {"train.lr": ["inf"]}}, r"train\.lr is inf; write a finite number"),
        ({"space": {"train.lr.x": [1]}}, r"lr is 0\.001, which has no keys"),
        ({"space": {"train.warmup_epochs": [1, 9]}}, r"train\.warmup_epochs=9\): .*smaller than"),
        ({"space": {"seed": ["x"]}}, r"seed is 'x'"),
        ({"runs": [{}, {"train": {"lrr": 1}}]}, r"sweep\.runs\.1 .*did you mean train\.lr\?"),
        ({"runs": [{"seed": 1}], "seeds": 2}, r"sweep\.runs\.0\.seed: sweep\.seeds"),
    ],
)
def test_a_mistake_names_the_axis(sweep: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        expand(_experiment(sweep))
