"""Features of a run: averages, patience, folds, unfreeze phases; and that they are undone."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.workers.small_runs import (
    RESNET,
    checkpoints,
    interrupted_after,
    last_step,
    make_base,
    make_run,
    make_setting,
    perform,
)
from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.errors import UserError
from workers.scoring.metrics import score
from workers.storage.manifest import read_manifest
from workers.storage.predictions import read_predictions
from workers.storage.store import Store
from workers.types import Checkpoint, RunSpec, WorkerConfig, ema_id

STILL: dict[str, Any] = {"epochs": 4, "lr": 1e-12, "sched": "none", "bn_freeze": True}
"""Learns so little that no score changes."""
GRADUAL = ({"epoch": 0, "modules": "head"}, {"epoch": 1, "modules": "layer4"})


@pytest.fixture(scope="module")
def worker_config(tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    return make_setting(tmp_path_factory.mktemp("store"), folds=2)


@pytest.fixture(scope="module")
def base(worker_config: WorkerConfig) -> Checkpoint:
    return make_base(worker_config, RESNET)


def _weights(
    worker_config: WorkerConfig, run: str, step: int, attempt: int = 0
) -> dict[str, torch.Tensor]:
    folder = f"{worker_config.uri}/runs/{run}/checkpoints/{step:08d}-{attempt}"
    tensors: dict[str, torch.Tensor] = load_file(f"{folder}/model.safetensors")
    return tensors


def _changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


# Moving averages


def test_a_moving_average_is_committed_scored_and_predicted_before_the_network(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run, store = make_run("averaged", RESNET, model_ema_decay=0.5), Store(worker_config.uri)
    events = perform(WorkerContext(worker_config), run, base)
    names = [checkpoint.name for checkpoint in checkpoints(events)]
    ids = [run.id, ema_id(run.id)]
    assert names == [f"{ids[1]}/00000006", f"{ids[0]}/00000006"] + [
        f"{ids[1]}/00000012",
        f"{ids[0]}/00000012",
    ]
    evaluated = [event for event in events if event.kind == "evaluated"]
    committed = [event for event in events if event.kind == "checkpoint"]
    assert [e.ema for e in evaluated] == [c.score for c in committed[::2]]
    assert [e.score for e in evaluated] == [c.score for c in committed[1::2]]
    for id_ in (f"{name}-0" for name in names):
        manifest = read_manifest(store, id_)
        assert manifest is not None and manifest.base == base.name
        _, labels, values = read_predictions(store, id_, "val")
        assert score(values, labels) == manifest.score
    assert not store.exists(f"runs/{ids[1]}/checkpoints/00000012-0/train_state.json")


def test_a_moving_average_is_that_of_the_weights(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run = make_run("every-step", RESNET, model_ema_decay=0.75, checkpoint_every="1 steps")
    perform(WorkerContext(worker_config), run, base, stop=3)
    raw = [_weights(worker_config, run.id, step) for step in (1, 2, 3)]
    found = _weights(worker_config, ema_id(run.id), 3)
    for name in ("fc.weight", "conv1.0.weight"):
        # timm's average begins after the first step.
        expected = 0.75 * (0.75 * raw[0][name] + 0.25 * raw[1][name]) + 0.25 * raw[2][name]
        assert torch.allclose(found[name], expected, atol=1e-6)


# Patience


def test_patience_ends_a_run_at_a_scored_checkpoint(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run = make_run("patient", RESNET, patience=2, checkpoint_every=4, **STILL)
    events = perform(WorkerContext(worker_config), run, base)
    assert events[-1].kind == "trained" and events[-1].early and events[-1].step == 18
    assert [checkpoint.step for checkpoint in checkpoints(events)] == [18]
    assert [event.step for event in events if event.kind == "evaluated"] == [6, 12, 18]


def test_a_run_that_gets_better_or_ends_anyway_is_not_early(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run = make_run("ends", RESNET, patience=1, **STILL | {"epochs": 2})
    last = perform(WorkerContext(worker_config), run, base)[-1]
    assert last.kind == "trained" and not last.early and last.step == 12


def test_a_run_whose_patience_is_over_trains_no_further_when_resumed(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    """For instance if a driver dies between the last checkpoint and the event of the run's end."""
    run = make_run("over", RESNET, patience=1, **STILL)
    end = checkpoints(perform(WorkerContext(worker_config), run, base))[-1]
    worker = WorkerContext(worker_config)
    events = perform(worker, run, end, attempt=1, stop=last_step(run))
    assert [event.kind for event in events] == ["trained"]
    assert events[0].kind == "trained" and events[0].early and events[0].step == 12
    assert worker.loaded_checkpoint_id == end.id


def test_an_end_by_patience_goes_before_an_interruption(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run = make_run("both", RESNET, patience=1, **STILL)
    events = interrupted_after(WorkerContext(worker_config), run, base, 12)
    assert events[-1].kind == "trained" and events[-1].early


def test_patience_waits_for_the_last_phase(worker_config: WorkerConfig, base: Checkpoint) -> None:
    sections = [{"epoch": 0, "modules": "head"}, {"epoch": 2, "modules": "all"}]
    run = make_run("waits", RESNET, patience=1, unfreeze=sections, **STILL)
    last = perform(WorkerContext(worker_config), run, base)[-1]
    assert last.kind == "trained" and last.early and last.step == 18


# Folds


def test_a_fold_is_scored_on_its_held_out_images(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run = make_run("fold", RESNET, model_ema_decay=0.5).model_copy(update={"fold": 1})
    worker = WorkerContext(worker_config)
    images, store = worker.images, worker.store
    steps = run.train.steps_per_epoch(len(images.train_indices(1)), 1)
    events = perform(worker, run, base, 2 * steps)
    evaluated = [event for event in events if event.kind == "evaluated"]
    assert [event.step for event in evaluated] == [steps, 2 * steps]
    for id_ in (f"fold/{2 * steps:08d}-0", f"fold-ema/{2 * steps:08d}-0"):
        keys, labels, values = read_predictions(store, id_, "fold:1")
        assert keys == images.keys("fold:1")
        if "ema" not in id_:
            assert score(values, labels) == evaluated[-1].held_out
        assert len(read_predictions(store, id_, "val")[0]) == evaluated[-1].score.count
    state = Store(worker_config.uri).read(
        f"runs/fold/checkpoints/{2 * steps:08d}-0/train_state.json"
    )
    tops = [event.held_out.top1 for event in evaluated if event.held_out]
    assert f'"history": {tops}'.encode() in state


# Sections


def test_a_phase_changes_its_modules_and_no_others(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    run = make_run("gradual", RESNET, unfreeze=GRADUAL)
    worker = WorkerContext(worker_config)
    perform(worker, run, base)
    start = load_file(f"{worker_config.uri}/base/test_resnet/model.safetensors")
    half, end = (_weights(worker_config, run.id, step) for step in (6, 12))
    assert _changed(start, half) == {"fc.weight", "fc.bias"}
    moved = _changed(half, end)
    assert {name.partition(".")[0] for name in moved} == {"fc", "layer4"}
    assert any("running_mean" in name for name in moved)
    assert all(parameter.requires_grad for parameter in worker.model(RESNET).parameters())


def test_a_phase_restarts_the_schedule_and_the_optimizer(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    sections = [{"epoch": epoch, "modules": "all"} for epoch in (0, 1)]
    run = make_run("restarts", RESNET, unfreeze=sections, lr=0.01, checkpoint_every="1 steps")
    events = perform(WorkerContext(worker_config), run, base)
    rates = [event.lr for event in events if event.kind == "evaluated"]
    assert rates[0] == rates[1] < 0.001
    state = load_file(
        f"{worker_config.uri}/runs/restarts/checkpoints/{7:08d}-0/train_state.safetensors"
    )
    assert state["fc.weight:step"] == 1


# What stays


def test_no_feature_of_one_run_reaches_the_next(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    plain = make_run("plain", RESNET)
    cold = checkpoints(perform(WorkerContext(worker_config), plain, base))[-1]
    worker = WorkerContext(worker_config)
    loud = make_run(
        "loud",
        RESNET,
        unfreeze=GRADUAL,
        channels_last=True,
        grad_checkpointing=True,
        bn_freeze=True,
        model_ema_decay=0.9,
        class_weights="balanced",
        mixup=0.2,
    )
    perform(worker, loud, base, stop=8)
    warm = checkpoints(perform(worker, plain, base, attempt=1))[-1]
    assert warm.sha256 == cold.sha256


def test_scores_of_channels_last_are_those_of_the_plain_network(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    """A mix of one checkpoint is that checkpoint, to the last bit of its logits."""
    from workers.data import eval_pixels
    from workers.models.build import preprocessing
    from workers.scoring.forward import logits

    run = make_run("last", RESNET, channels_last=True, model_ema_decay=0.5)
    perform(WorkerContext(worker_config), run, base)
    for id_ in (run.id, ema_id(run.id)):
        worker = WorkerContext(worker_config)
        net = worker.model(RESNET)
        net.load_state_dict(_weights(worker_config, id_, 12))
        config = preprocessing(net, worker_config.data)
        again = logits(net, eval_pixels(worker.images, "val", config), config, "cpu")
        assert np.array_equal(again, read_predictions(worker.store, f"{id_}/00000012-0", "val")[2])


def test_missing_features_of_the_model_are_refused_when_training_begins(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    wrong = RunSpec(
        id="wrong",
        model=RESNET,
        train=TrainConfig(unfreeze=[{"epoch": 0, "modules": "nothing"}]),  # type: ignore[list-item]
    )
    with pytest.raises(UserError, match="train.unfreeze"):
        perform(WorkerContext(worker_config), wrong, base)


@pytest.mark.slow
def test_a_resumed_compiled_run_is_the_same_run(
    worker_config: WorkerConfig, base: Checkpoint
) -> None:
    torch._dynamo.reset()
    run = make_run("compiled", RESNET, compile=True)
    whole = checkpoints(perform(WorkerContext(worker_config), run, base))[-1]
    torch._dynamo.reset()
    stopped = checkpoints(interrupted_after(WorkerContext(worker_config), run, base, 5, attempt=1))[
        -1
    ]
    torch._dynamo.reset()
    after = checkpoints(perform(WorkerContext(worker_config), run, stopped, attempt=2))[-1]
    assert after.sha256 == whole.sha256
