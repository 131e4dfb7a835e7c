"""Runs of every feature, interrupted anywhere and resumed, write the same bytes."""

from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.small_runs import (
    RESNET,
    VIT,
    checkpoints,
    interrupted_after,
    make_base,
    make_run,
    make_setting,
    perform,
)
from workers.config.model import ModelConfig
from workers.config.train import AffineConfig, PerspectiveConfig
from workers.context import WorkerContext
from workers.storage.layout import WEIGHTS, checkpoint_dir
from workers.storage.store import Store
from workers.types import AnyEvent, Checkpoint, RunSpec, WorkerConfig, ema_id

PARTS = {"test_vit": ("blocks.1", "norm", "blocks"), "test_resnet": ("layer4", "bn1", "layer3.0")}
NAMES = count()

AUGMENTATION: dict[str, st.SearchStrategy[Any]] = {
    "aa": st.sampled_from([None, "rand-m5-mstd0.5-inc1", "augmix-m3-w2", "original"]),
    "crop": st.sampled_from(["center", (0.5, 1.0)]),
    "hflip": st.sampled_from([0.0, 0.5]),
    "vflip": st.sampled_from([0.0, 0.5]),
    "color_jitter": st.sampled_from([None, 0.3]),
    "grayscale": st.sampled_from([0.0, 0.3]),
    "affine": st.sampled_from([None, AffineConfig(degrees=20, translate=(0.1, 0.1), shear=5)]),
    "perspective": st.sampled_from([None, PerspectiveConfig()]),
    "reprob": st.sampled_from([0.0, 0.5]),
    "mixup": st.sampled_from([0.0, 0.4]),
    "cutmix": st.sampled_from([0.0, 1.0]),
    "mixup_prob": st.sampled_from([0.5, 1.0]),
    "mixup_off_epoch": st.sampled_from([0, 1]),
}
OPTIMISATION: dict[str, st.SearchStrategy[Any]] = {
    "epochs": st.integers(2, 3),
    "grad_accum_steps": st.integers(1, 2),
    "opt": st.sampled_from(
        ["adamw", "sgd", "momentum", "nadamw", "lion", "lamb", "adafactor", "lookahead_adam"]
    ),
    "head_lr": st.sampled_from([None, 3e-2]),
    "layer_decay": st.sampled_from([None, 0.7]),
    "warmup_epochs": st.integers(0, 1),
    "smoothing": st.sampled_from([0.0, 0.1]),
    "class_weights": st.sampled_from([None, "balanced", {"3": 2.5}]),
    "drop_path": st.sampled_from([0.0, 0.3]),
    "clip_grad": st.sampled_from([None, 1.0]),
    "amp_dtype": st.sampled_from(["none", "none", "bfloat16"]),
    "bn_freeze": st.booleans(),
    "channels_last": st.booleans(),
    "grad_checkpointing": st.booleans(),
    "patience": st.sampled_from([None, 1]),
    "model_ema_decay": st.sampled_from([None, 0.8]),
    "model_ema_warmup": st.booleans(),
    "checkpoint_every": st.sampled_from([1, "2 steps", 2]),
}
CYCLES = st.fixed_dictionaries(
    {
        "sched": st.sampled_from(["cosine", "poly", "tanh"]),
        "lr_cycle_limit": st.integers(1, 3),
        "lr_cycle_mul": st.sampled_from([1.0, 2.0]),
        "lr_cycle_decay": st.sampled_from([0.5, 1.0]),
    }
)
SCHEDULES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    CYCLES,
    st.just({"sched": "step", "decay_epochs": 0.5, "decay_rate": 0.5}),
    st.just({"sched": "multistep", "decay_milestones": (1,), "decay_rate": 0.5}),
    st.just({"sched": "plateau", "patience_epochs": 0, "decay_rate": 0.5}),
    st.just({"sched": "none"}),
)


@st.composite
def runs(draw: st.DrawFn) -> RunSpec:
    model: ModelConfig = draw(st.sampled_from([VIT, RESNET]))
    options = draw(st.fixed_dictionaries(AUGMENTATION | OPTIMISATION)) | draw(SCHEDULES)
    parts = st.sampled_from(PARTS[model.name])
    later = [{"epoch": 1, "modules": draw(parts)}, {"epoch": 2, "modules": ["all"]}]
    sections = [{"epoch": 0, "modules": "head"}, *later[: options["epochs"] - 1]]
    options["unfreeze"] = draw(st.sampled_from([(), tuple(sections)]))
    run = make_run(f"r{next(NAMES)}", model, **options)
    return run.model_copy(update={"fold": draw(st.sampled_from([None, 0, 1]))})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    return make_setting(tmp_path_factory.mktemp("store"), folds=2)


@pytest.fixture(scope="module")
def bases(config: WorkerConfig) -> dict[str, Checkpoint]:
    return {model.name: make_base(config, model) for model in (VIT, RESNET)}


def _last_bytes(config: WorkerConfig, run: RunSpec, events: list[AnyEvent]) -> dict[str, bytes]:
    """Every file of the last checkpoint, with optimizer state and history, and its average's."""
    store, last, files = Store(config.uri), checkpoints(events)[-1], {}
    for file in (WEIGHTS, "train_state.safetensors", "train_state.json"):
        files[file] = store.read(f"{checkpoint_dir(last.id)}/{file}")
    if run.train.model_ema_decay is not None:
        average = f"{ema_id(run.id)}/{last.step:08d}-{last.attempt}"
        files["average"] = store.read(f"{checkpoint_dir(average)}/{WEIGHTS}")
    return files


def _learning_curve(events: list[AnyEvent]) -> list[Any]:
    """The run's learning curve as events, and its end."""
    curve = [e for e in events if e.kind == "evaluated"]
    told = [(e.step, e.epoch, e.loss, e.lr, e.score, e.ema, e.held_out) for e in curve]
    return [*told, *((e.step, e.early) for e in events if e.kind == "trained")]


def _check(config: WorkerConfig, base: Checkpoint, run: RunSpec, where: float) -> None:
    steps_per_epoch = run.train.steps_per_epoch(
        len(WorkerContext(config).images.train_indices(run.fold)), ranks=1
    )
    total = run.train.epochs * steps_per_epoch
    whole = perform(WorkerContext(config), run, base, total)
    end = checkpoints(whole)[-1].step
    cut = 1 + int(where * (end - 1))
    worker = WorkerContext(config)
    before = interrupted_after(worker, run, base, cut, attempt=1, stop=total)
    stopped = checkpoints(before)[-1]
    assert stopped.step == cut
    for attempt, going_on in ((2, worker), (3, WorkerContext(config))):
        after = perform(going_on, run, stopped, total, attempt)
        assert _learning_curve(whole)[-len(_learning_curve(after)) :] == _learning_curve(after), run
        assert _learning_curve(before) + _learning_curve(after) == _learning_curve(whole), run
        expected, found = (_last_bytes(config, run, events) for events in (whole, after))
        assert {file for file in expected if expected[file] != found[file]} == set(), run


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(run=runs(), where=st.floats(0, 0.999))
def test_a_resumed_run_warm_or_cold_is_the_same_run(
    config: WorkerConfig, bases: dict[str, Checkpoint], run: RunSpec, where: float
) -> None:
    _check(config, bases[run.model.name], run, where)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs(), where=st.floats(0, 0.999))
def test_many_resumed_runs_are_the_same_runs(
    config: WorkerConfig, bases: dict[str, Checkpoint], run: RunSpec, where: float
) -> None:
    _check(config, bases[run.model.name], run, where)
