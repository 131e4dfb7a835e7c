"""Training orders: events, files, and above all the bytes."""

import json
import math
import time
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from torch import multiprocessing

from tests.workers.small_runs import (
    NUM_TRAIN,
    NUM_VAL,
    RESNET,
    VIT,
    checkpoints,
    interrupted_after,
    last_step,
    make_base,
    make_run,
    make_setting,
    perform,
)
from workers.config.model import ModelConfig
from workers.context import WorkerContext
from workers.errors import UserError
from workers.scoring.metrics import score
from workers.storage.layout import WEIGHTS, checkpoint_dir
from workers.storage.manifest import read_manifest
from workers.storage.predictions import read_predictions
from workers.storage.store import Store
from workers.training.train import accelerated, train
from workers.types import Checkpoint, RunSpec, TrainOrder, WorkerConfig

HARD: dict[str, Any] = {
    "grad_accum_steps": 2,  # 22 images in steps of 8: the last one is short
    "drop_path": 0.3,
    "smoothing": 0.1,
    "clip_grad": 1.0,
    "warmup_epochs": 1,
    "head_lr": 3e-2,
    "checkpoint_every": "2 steps",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    return make_setting(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def vit_base(config: WorkerConfig) -> Checkpoint:
    return make_base(config, VIT)


@pytest.fixture(scope="module")
def resnet_base(config: WorkerConfig) -> Checkpoint:
    return make_base(config, RESNET)


def _bytes(config: WorkerConfig, checkpoint: Checkpoint) -> bytes:
    return Store(config.uri).read(f"{checkpoint_dir(checkpoint.id)}/{WEIGHTS}")


def _in_fresh_process(config: WorkerConfig, run: RunSpec, start: Checkpoint, attempt: int) -> None:
    torch.set_num_threads(1)
    perform(WorkerContext(config), run, start, attempt=attempt)


def test_a_run_yields_its_events_in_order(config: WorkerConfig, vit_base: Checkpoint) -> None:
    run = make_run("events")
    events = perform(WorkerContext(config), run, vit_base)
    kinds = [event.kind for event in events]
    assert kinds[0] == "started" and kinds[-1] == "trained"
    assert kinds.count("evaluated") == kinds.count("checkpoint") == 2
    evaluated = [event for event in events if event.kind == "evaluated"]
    assert [event.epoch for event in evaluated] == [1, 2]
    assert [event.step for event in evaluated] == [6, 12]
    assert all(event.score.count == NUM_VAL for event in evaluated)
    assert [e.score for e in events if e.kind == "checkpoint"] == [e.score for e in evaluated]


def test_a_run_learns(config: WorkerConfig, resnet_base: Checkpoint) -> None:
    """Twenty epochs on 22 images are enough to overfit, if training works."""
    run = make_run("learns", RESNET, epochs=20, hflip=0, crop=(1, 1), lr=5e-3, checkpoint_every=20)
    events = perform(WorkerContext(config), run, resnet_base)
    losses = [event.loss for event in events if event.kind == "evaluated"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_checkpoint_is_the_bare_network_with_predictions_and_score(
    config: WorkerConfig, resnet_base: Checkpoint
) -> None:
    store, worker = Store(config.uri), WorkerContext(config)
    last = checkpoints(perform(worker, make_run("files", RESNET), resnet_base))[-1]
    assert last.name == f"files/{last_step(make_run('files')):08d}" and last.attempt == 0
    weights = load_file(f"{config.uri}/runs/files/checkpoints/{last.step:08d}-0/model.safetensors")
    assert weights.keys() == worker.model(RESNET).state_dict().keys()
    manifest = read_manifest(store, last.id)
    assert manifest is not None and manifest.base == resnet_base.name
    keys, labels, values = read_predictions(store, last.id, "val")
    assert keys == worker.images.keys("val")
    assert score(values, labels) == manifest.score


def test_the_log_is_in_the_store(config: WorkerConfig, vit_base: Checkpoint) -> None:
    store, run = Store(config.uri), make_run("diary")
    perform(WorkerContext(config), run, vit_base, stop=6)
    perform(WorkerContext(config), run, vit_base, stop=6)
    assert RunSpec.model_validate_json(store.read("runs/diary/params.json")) == run
    assert store.read("runs/diary/logs/attempt-0.log").count(b"training from base/") == 2
    assert len(store.list("runs/diary/tensorboard")) == 2


@pytest.mark.parametrize(
    ("opt", "cut"),
    [("adamw", cut) for cut in range(1, 6)]
    + [(opt, 2) for opt in ("momentum", "nadamw", "lion", "lamb", "adafactor", "lookahead_adam")],
)
def test_a_resumed_run_writes_the_same_bytes(
    config: WorkerConfig, vit_base: Checkpoint, opt: str, cut: int
) -> None:
    """Two epochs of three steps, dropout and stochastic depth on, stopped at every step."""
    run = make_run(f"cut-{opt}", opt=opt, **HARD)
    whole = checkpoints(perform(WorkerContext(config), run, vit_base))[-1]
    before = interrupted_after(WorkerContext(config), run, vit_base, cut, attempt=10 + cut)
    assert before[-1].kind == "interrupted" and before[-1].reason == "grace period"
    stopped = checkpoints(before)[-1]
    assert stopped.step == cut
    after = perform(WorkerContext(config), run, stopped, attempt=20 + cut)
    assert checkpoints(after)[-1].sha256 == whole.sha256
    assert _bytes(config, checkpoints(after)[-1]) == _bytes(config, whole)


def test_a_run_resumed_in_another_process_writes_the_same_bytes(
    config: WorkerConfig, resnet_base: Checkpoint
) -> None:
    run = make_run("moved", RESNET, opt="adamw", **HARD)
    written = checkpoints(perform(WorkerContext(config), run, resnet_base))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_in_fresh_process, args=(config, run, written[0], 7))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    there = read_manifest(Store(config.uri), f"{written[-1].name}-7")
    assert there is not None and there.checkpoint.sha256 == written[-1].sha256


def test_a_resumed_epoch_reports_the_same_loss(config: WorkerConfig, vit_base: Checkpoint) -> None:
    run = make_run("sums", **HARD)
    events = perform(WorkerContext(config), run, vit_base)
    middle = checkpoints(events)[0]
    assert middle.step == 2
    resumed = perform(WorkerContext(config), run, middle, attempt=1)
    expected = [(e.loss, e.score, e.lr) for e in events if e.kind == "evaluated"]
    assert [(e.loss, e.score, e.lr) for e in resumed if e.kind == "evaluated"] == expected


def test_segments_on_a_warm_worker_write_the_same_bytes_and_load_nothing(
    config: WorkerConfig, vit_base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("segments", **HARD)
    whole = checkpoints(perform(WorkerContext(config), run, vit_base))[-1]
    worker = WorkerContext(config)
    first = checkpoints(perform(worker, run, vit_base, stop=4, attempt=1))[-1]
    assert worker.loaded_checkpoint_id == first.id

    def refuse(*_: Any) -> None:
        raise AssertionError("loaded something")

    monkeypatch.setattr("workers.training.resume.open_weights", refuse)
    monkeypatch.setattr("workers.training.resume.load_train_state", refuse)
    second = perform(worker, run, first, attempt=2)
    assert checkpoints(second)[-1].sha256 == whole.sha256


def test_a_soup_is_started_from_with_fresh_momentum_at_its_step(
    config: WorkerConfig, vit_base: Checkpoint
) -> None:
    from workers.storage.checkpoint_writer import write_checkpoint
    from workers.storage.checkpoints import open_weights

    store, run = Store(config.uri), make_run("pushed")
    with open_weights(store, vit_base) as weights:
        soup = write_checkpoint(store, "soup/s", None, 6, weights)
    events = perform(WorkerContext(config), run, soup)
    assert [event.step for event in events if event.kind == "evaluated"] == [12]


def test_placement_and_history_of_a_worker_do_not_change_the_bytes(
    config: WorkerConfig, vit_base: Checkpoint, resnet_base: Checkpoint
) -> None:
    run = make_run("placed", RESNET, drop_path=0.2)
    cold = checkpoints(perform(WorkerContext(config), run, resnet_base))[-1]
    worker = WorkerContext(config)
    perform(worker, make_run("other"), vit_base, stop=2)
    perform(worker, make_run("frozen", RESNET, bn_freeze=True), resnet_base, stop=2)
    warm = checkpoints(perform(worker, run, resnet_base, attempt=1))[-1]
    assert warm.sha256 == cold.sha256


def test_replicas_write_the_same_bytes_and_seeds_do_not(
    config: WorkerConfig, vit_base: Checkpoint
) -> None:
    run = make_run("original")
    replica = run.model_copy(update={"id": "replica", "replica": 1})
    reseeded = run.model_copy(update={"id": "reseeded", "seed": 2})
    shas = [
        checkpoints(perform(WorkerContext(config), each, vit_base, stop=6))[-1].sha256
        for each in (run, replica, reseeded)
    ]
    assert shas[0] == shas[1] != shas[2]


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_step(
    config: WorkerConfig, vit_base: Checkpoint
) -> None:
    """Equal but for rounding: sums of float32 in another order, through 3 steps of SGD. Without
    dropout, since that is drawn per micro-batch; short last step included."""
    plain = ModelConfig(name="test_vit")
    run = make_run("micro", plain, opt="sgd", epochs=1, batch_size=8)
    worker = WorkerContext(config)
    order = TrainOrder(run=run, start=vit_base, stop_step=3)
    list(train(order, 0, worker))
    list(train(order.model_copy(update={"micro_batch": 3}), 1, worker))
    folder = f"{config.uri}/runs/micro/checkpoints"
    whole, pieces = (load_file(f"{folder}/00000003-{a}/model.safetensors") for a in (0, 1))
    start = load_file(f"{config.uri}/base/test_vit/model.safetensors")
    for name in whole:
        moved = (whole[name] - start[name]).abs().max()
        assert (whole[name] - pieces[name]).abs().max() <= 1e-3 * moved + 1e-7


def test_a_probe_trains_the_classifier_alone(config: WorkerConfig, resnet_base: Checkpoint) -> None:
    run = make_run("probe", RESNET).model_copy(update={"role": "probe"})
    worker = WorkerContext(config)
    perform(worker, run, resnet_base, stop=6)
    start = load_file(f"{config.uri}/base/test_resnet/model.safetensors")
    end = load_file(f"{config.uri}/runs/probe/checkpoints/00000006-0/model.safetensors")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert all(parameter.requires_grad for parameter in worker.model(RESNET).parameters())


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_batchnorm_keeps_its_statistics_through_every_epoch(
    config: WorkerConfig, resnet_base: Checkpoint, freeze: bool
) -> None:
    run = make_run(f"freeze-{freeze}", RESNET, bn_freeze=freeze)
    last = checkpoints(perform(WorkerContext(config), run, resnet_base))[-1]
    start = load_file(f"{config.uri}/base/test_resnet/model.safetensors")
    end = load_file(f"{config.uri}/runs/{run.id}/checkpoints/{last.step:08d}-0/model.safetensors")
    kept = [torch.equal(start[name], end[name]) for name in start if "running_" in name]
    assert all(kept) if freeze else not any(kept)


def test_bfloat16_training_scores_in_float32(config: WorkerConfig, vit_base: Checkpoint) -> None:
    """The network itself stays unpatched, so that its scores are the same everywhere."""
    worker = WorkerContext(config)
    last = checkpoints(perform(worker, make_run("bf16", amp_dtype="bfloat16"), vit_base, 6))[-1]
    assert "forward" not in vars(worker.model(VIT))
    folder = f"{config.uri}/runs/bf16/checkpoints/{last.step:08d}-0"
    assert {t.dtype for t in load_file(f"{folder}/model.safetensors").values()} == {torch.float32}


def test_a_diverged_run_is_reported_with_name_and_step(
    config: WorkerConfig, vit_base: Checkpoint
) -> None:
    run = make_run("wild", opt="sgd", lr=1e30)
    with pytest.raises(FloatingPointError, match=r"run wild diverged: its loss is .* at step \d+"):
        perform(WorkerContext(config), run, vit_base)
    assert b"FloatingPointError" in Store(config.uri).read("runs/wild/logs/attempt-0.log")


def test_float16_on_a_cpu_is_refused(config: WorkerConfig, vit_base: Checkpoint) -> None:
    with pytest.raises(UserError, match="train.amp_dtype: float16 needs a GPU"):
        perform(WorkerContext(config), make_run("half", amp_dtype="float16"), vit_base)


def test_one_accelerator_follows_another_in_one_process(config: WorkerConfig) -> None:
    for amp_dtype, expected in (("bfloat16", "bf16"), ("none", "no")):
        with accelerated(make_run(amp_dtype=amp_dtype).train, config) as accelerator:
            assert accelerator.mixed_precision == expected
        for state in (AcceleratorState, GradientState, PartialState):
            assert not state._shared_state


def test_an_exception_leaves_no_accelerator_behind(config: WorkerConfig) -> None:
    with pytest.raises(RuntimeError), accelerated(make_run().train, config):
        raise RuntimeError
    assert not AcceleratorState._shared_state


def test_a_warm_start_takes_well_under_a_tenth_of_a_second(
    config: WorkerConfig, vit_base: Checkpoint
) -> None:
    """The best of five, because the machine may be busy; measured 0.02 s on a busy core."""
    worker, gaps = WorkerContext(config), []
    for attempt in range(6):
        started = perform(worker, make_run("warm", lr=0.01), vit_base, 1, attempt)[0]
        worker.last_step_at = time.monotonic()
        assert started.kind == "started" and started.warm == (attempt > 0)
        gaps.append(started.gap_s)
    assert gaps[0] is None and min(gaps[1:]) < 0.1


def test_the_state_of_training_is_plain_json(config: WorkerConfig, vit_base: Checkpoint) -> None:
    last = checkpoints(perform(WorkerContext(config), make_run("json"), vit_base, 6))[-1]
    folder = f"runs/json/checkpoints/{last.step:08d}-0"
    state = json.loads(Store(config.uri).read(f"{folder}/train_state.json"))
    assert state["position"]["step"] == 6 and state["position"]["images"] == NUM_TRAIN
    assert math.isfinite(state["position"]["loss_sum"])
    tensors = load_file(f"{config.uri}/{folder}/train_state.safetensors")
    assert "head.weight:exp_avg" in tensors
