"""The Experiment is strict, reports a mistake in one sentence, and reads back its own dump."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config import (
    Experiment,
    dump,
    load,
    num_ranks,
    read,
    uri,
    worker_config,
    yaml_document,
)
from workers.errors import UserError

DIGITS = {"data": {"source": "digits"}, "model": {"name": "test_resnet"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text("data: {source: digits}\nmodel: {name: test_resnet}\n")
    return path


def _refused(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        load(file, overrides)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def test_a_file_gives_its_name_to_the_experiment(file: Path) -> None:
    assert load(file).name == "digits"
    assert load(file, name="other").name == "other"
    assert load(file, ["name=third"]).name == "third"


def test_overrides_are_typed_as_yaml(file: Path) -> None:
    experiment = load(
        file,
        [
            "train.lr=1e-4",
            "train.crop=[0.5, 1.0]",
            "merge.mode=off",
            "data.ood={blur: b}",
            "fleet.max_hours=null",
            "sweep.space.train.lr=[1e-4, 1e-3]",
            "fleet.env.OMP_NUM_THREADS='2'",
        ],
    )
    assert experiment.train.lr == 1e-4
    assert experiment.train.crop == (0.5, 1.0)
    assert experiment.merge.mode == "off"
    assert experiment.data.ood == {"blur": "b"}
    assert experiment.sweep.space["train.lr"].choice == (1e-4, 1e-3)
    assert experiment.fleet.env == {"OMP_NUM_THREADS": "2"}


def test_a_recipe_may_appear_again_with_other_options(file: Path) -> None:
    greedy = "greedy, {greedy: {tie: strict}}, {greedy: {patience: 1}}"
    soup = load(file, [f"soup.recipes=[best, {greedy}]", "soup.serve=greedy-2"]).soup
    assert soup.labels == ("best", "greedy", "greedy-2", "greedy-3") and soup.serve == "greedy-2"
    with pytest.raises(UserError, match="serve is 'greedy-4'; .* best, greedy, "):
        load(file, [f"soup.recipes=[best, {greedy}]", "soup.serve=greedy-4"])
    # The written option equals the default from soup.tie.
    same = ["soup.recipes=[greedy, {greedy: {tie: strict}}]", "soup.tie=strict"]
    with pytest.raises(UserError, match="greedy twice with the same options"):
        load(file, same)


def test_an_empty_section_means_the_defaults(file: Path) -> None:
    file.write_text(file.read_text() + "train:\n  # lr: 1\nsweep:\n")
    assert load(file).train == Experiment(name="x", **DIGITS).train


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.learning_rate=1", r"unknown key train\.learning_rate; did you mean train\.lr\?"),
        ("train.epoch=1", r"unknown key train\.epoch; did you mean train\.epochs\?"),
        ("lr=0.1", r"unknown key lr; did you mean train\.lr\?"),
        ("modell.name=x", r"unknown key modell; did you mean model\?"),
        ("qqq=1", r"unknown key qqq; .*: name, storage"),
        ("train.lr=abc", r"train\.lr is 'abc', but should be a valid number"),
        ("train.lr=inf", r"train\.lr is inf; write a finite number"),
        ("train.lr=1e999", r"train\.lr is inf; write a finite number"),
        ("train.epochs=true", r"train\.epochs is true or false; write a number"),
        ("train.sched=stepwise", r"train\.sched is 'stepwise', but should be 'cosine'"),
        ("train.checkpoint_every=[1]", r"train\.checkpoint_every is \[1\]"),
        ("train.warmup_epochs=9", r"train: warmup_epochs 9 must be smaller than epochs 5"),
        ("train=3", r"train is 3"),
        ("model=", r"model\.name is missing"),
        ("data.source=folder", r"data\.root is missing; pass data\.root=FOLDER"),
        ("name=a/b", r"name: got 'a/b'; write a plain folder name"),
        ("name=..", r"plain folder name"),
        ("merge.every=0", r"merge\.every: got 0"),
        ("merge.every=3 epochs", r"merge\.every: got '3 epochs'"),
        ("merge.method=nope", r"merge\.method: unknown recipe 'nope'"),
        ("soup.recipes=[best, gredy]", r"soup\.recipes\.1: unknown recipe 'gredy'.*greedy"),
        ("soup.recipes=[]", r"soup: recipes is \[\]"),
        (
            "soup.recipes=[best, best]",
            r"soup: recipes has best twice with the same options; remove",
        ),
        ("soup.recipes=[greedy, {greedy: {tie: accept}}]", r"greedy twice with the same options"),
        ("soup.serve=nope", r"soup: serve is 'nope'; write auto or one of best, uniform, greedy"),
        ("soup.ingredients=top-0", r"soup\.ingredients: got 'top-0'"),
        ("soup.ingredients=[3, 2]", r"got \[3, 2\]; .* a list of epochs such as \[3, 6, 9\]"),
        ("soup.ingredients=[0, 2]", r"soup\.ingredients: got \[0, 2\]"),
        ("soup.ingredients=[true]", r"soup\.ingredients: got \[True\]"),
        ("soup.ingredients=[]", r"soup\.ingredients: got \[\]"),
        ("data.fold=3", r"unknown key data\.fold; did you mean data\.folds\?"),
        ("data.folds=1", r"data\.folds is 1, but should be greater than or equal to 2"),
        ("ensemble.stack=true", r"did you mean ensemble\.stacking\?"),
        ("train.ema=0.9", r"unknown key train\.ema; did you mean train\.model_ema_decay\?"),
        ("train.crop=centre", r"train\.crop is 'centre', but should be a list or 'center'"),
        ("train.crop=[0.5]", r"train\.crop is \[0\.5\], but should be longer or 'center'"),
        ("train.crop=[0, 1, 2]", r"should be a list of at most 2 or 'center'"),
        ("train.unfreeze=head", r"train\.unfreeze is 'head', but should be a list"),
        ("train.affine={scale: [1]}", r"train\.affine\.scale is \[1\], but should be longer"),
        ("train.affine=[3]", r"train\.affine is \[3\], but should be a mapping"),
        (
            "train.unfreeze=[{epoch: 0, modul: head}]",
            r"unknown key train\.unfreeze\.0\.modul; did you mean train\.unfreeze\.0\.modules\?",
        ),
        ("train.unfreeze=[{modules: head}]", r"train\.unfreeze\.0\.epoch is missing"),
        ("train.unfreeze=[{epoch: 1, modules: all}]", r"begin the first at epoch 0"),
        ("fleet.gpus_per_run=1.5", r"fleet\.gpus_per_run: got 1\.5"),
        ("sweep.space.train.lr=5", r"sweep\.space\.train\.lr: got 5; write a list of values"),
        ("sweep.space.train.lr={uniform: [2, 1]}", r"uniform \[2\.0, 1\.0\]"),
        ("sweep.space.train.lr={loguniform: [0, 1]}", r"loguniform \[0\.0, 1\.0\] .*above 0"),
        ("sweep.space.train.lr={int: [1, 2], choice: [1]}", r"got choice, int of .* give one"),
        ("sweep.space.train.lr={int: [1, 3]}", r"space\.train\.lr is a range, .*grid"),
        ("sweep={sampler: random, space: {seed: [1]}}", r"sweep: num_runs is None"),
        ("sweep={sampler: random, num_runs: 2}", r"sampler: random needs a space"),
        (
            "sweep={sampler: zip, space: {seed: [1], train.lr: [1, 2]}}",
            r"sampler: zip .*'seed': 1, 'train\.lr': 2",
        ),
        ("sweep={sampler: list}", r"sampler: list needs runs"),
        ("sweep.seeds=[1, 1]", r"seeds is \(1, 1\)"),
        ("sweep.seeds=0", r"seeds is 0"),
        ("train.lr", r"override 'train\.lr': not an assignment; write KEY=VALUE"),
        ("train..lr=1", r"not an assignment"),
        ("train.lr=[", r"override 'train\.lr=\[', line 1.*not readable as YAML"),
        ("model.name.x=1", r"name is 'test_resnet', which has no keys"),
    ],
)
def test_a_mistake_is_one_clear_sentence(file: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(file, [override])
    _refused(file, override)


def test_a_mistake_in_a_file_names_the_file(file: Path) -> None:
    assert _refused(file, "train.epochs=many").startswith(f"{file}: train.epochs is 'many'")


def test_further_mistakes_are_counted(file: Path) -> None:
    assert _refused(file, "train.epochs=many", "train.lr=x").endswith("(1 more like this)")


def test_a_repeated_key_is_refused(file: Path) -> None:
    file.write_text("model: {name: a}\ndata: {source: digits}\nmodel: {name: b}\n")
    sentence = _refused(file)
    assert "line 3, column 1" in sentence and "'model'" in sentence and "twice" in sentence


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "{[a]: 1}\n", "a: b: c\n", "\x07"])
def test_a_text_without_a_mapping_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    assert str(file) in _refused(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "not readable" in _refused(tmp_path / "absent.yaml")
    assert "not readable" in _refused(tmp_path)


def test_nothing_is_executed_by_a_yaml_tag(file: Path, tmp_path: Path) -> None:
    file.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    _refused(file)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("key", ["probe_epochs", "trunk_epochs"])
def test_a_trained_base_is_refused_with_folds(file: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"base\.{key} is 2 with data\.folds: 3; .* 0"):
        load(file, ["data.folds=3", f"base.{key}=2"])
    assert load(file, ["data.folds=3", f"base.{key}=0"]).data.folds == 3


def test_variables_are_filled_in_and_inputs_become_absolute(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUPFLEET_TEST_DATA", "/some/where")
    monkeypatch.setenv("HOME", "/home/user")
    experiment = load(
        file,
        ["data.root=${SOUPFLEET_TEST_DATA}/x", "model.checkpoint=w.safetensors", "storage=~/runs"],
    )
    assert experiment.data.root == "/some/where/x"
    assert experiment.model.checkpoint == str(tmp_path / "w.safetensors")
    assert experiment.storage == "/home/user/runs"


def test_a_variable_that_is_not_set_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOUPFLEET_TEST_DATA", raising=False)
    sentence = _refused(file, "data.root=${SOUPFLEET_TEST_DATA}")
    assert "data.root" in sentence and "SOUPFLEET_TEST_DATA is not set" in sentence


def test_the_uri_joins_storage_and_name_and_keeps_a_query(file: Path, tmp_path: Path) -> None:
    assert uri(load(file, storage=str(tmp_path))) == str(tmp_path / "digits")
    remote = "s3://bucket/prefix/?endpoint_override=localhost:9000&scheme=http"
    joined = "s3://bucket/prefix/digits?endpoint_override=localhost:9000&scheme=http"
    assert uri(load(file, storage=remote)) == joined
    assert uri(load(file, storage="s3://bucket")) == "s3://bucket/digits"
    assert uri(load(file)) == str(Path.cwd() / "runs" / "digits")


def test_ranks_are_whole_gpus_and_a_share_is_one_rank(file: Path) -> None:
    assert num_ranks(load(file, ["fleet.gpus_per_run=2"])) == 2
    assert num_ranks(load(file, ["fleet.gpus_per_run=0.5"])) == 1


def test_the_worker_config_is_that_of_the_experiment(file: Path, tmp_path: Path) -> None:
    experiment = load(file, ["seed=7", "soup.metric=nll", "fleet.cpus_per_run=3"])
    worker = worker_config(experiment, "cpu")
    assert (worker.seed, worker.metric, worker.threads, worker.device) == (7, "nll", 3, "cpu")
    assert worker.uri == uri(experiment) and worker.data == experiment.data


_leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(-1e38, 1e38)
    | st.text()
    | st.sampled_from(["off", "1e-3", "010", "0x1f", "1:30", "2026-01-31", "~", "null", "<<", "="])
)
_tree = st.recursive(
    _leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


@settings(deadline=None)  # a busy machine is not a failure
@given(st.dictionaries(st.text(), _tree))
def test_a_document_reads_back_as_it_was_written(tree: dict[str, Any]) -> None:
    assert yaml_document.parse(yaml_document.render(tree), "text") == tree


_axis = st.one_of(
    st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=3, unique=True),
    st.tuples(st.floats(1e-5, 1e-3), st.floats(1e-2, 1.0)).map(lambda ab: {"uniform": list(ab)}),
    st.tuples(st.floats(1e-5, 1e-3), st.floats(1e-2, 1.0)).map(lambda ab: {"loguniform": list(ab)}),
)
_experiments = st.builds(
    lambda lr, axis, mode, recipes, env, kwargs, smoothing: Experiment.model_validate(
        {
            "name": "x",
            "data": {"source": "digits", "ood": env},
            "model": {"name": "resnet18", "kwargs": kwargs},
            "train": {"lr": lr, "smoothing": smoothing},
            "sweep": {"sampler": "random", "num_runs": 2, "space": {"train.lr": axis}},
            "fleet": {"env": env},
            "merge": {"mode": mode},
            "soup": {"recipes": recipes},
        }
    ),
    lr=st.floats(1e-12, 1e3),
    axis=_axis,
    mode=st.sampled_from(["observe", "off"]),
    recipes=st.sampled_from([["best"], ["greedy", "best"], ["uniform"]]),
    env=st.dictionaries(st.text(min_size=1), st.text(), max_size=3),
    kwargs=st.dictionaries(st.text(min_size=1), _leaf, max_size=3),
    smoothing=st.floats(0, 0.99),
)


@settings(deadline=None)  # a busy machine is not a failure
@given(_experiments)
def test_a_dump_loads_to_the_same_experiment(experiment: Experiment) -> None:
    assert read(dump(experiment), "dump") == experiment
    assert read(dump(experiment, named_only=True), "dump") == experiment


def test_a_dump_is_plain_yaml_for_any_reader(file: Path) -> None:
    experiment = load(file, ["merge.mode=off", "train.lr=1e-5", "fleet.env={A: '010'}"])
    assert yaml.safe_load(dump(experiment)) == experiment.model_dump(mode="json")
