"""Preflight, base and scoring, one after the other, on the bundled digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.errors import UserError
from workers.preflight import ADAM_MOMENTS, preflight, state_copies
from workers.scoring.metrics import score as metrics_of
from workers.scoring.score import score_checkpoint
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.checkpoints import open_weights
from workers.storage.predictions import read_predictions
from workers.training.base_model import make_base
from workers.types import (
    BaseOrder,
    BaseReady,
    Checkpoint,
    Cohort,
    Preflighted,
    PreflightOrder,
    PreflightResult,
    Scored,
    ScoreOrder,
    WorkerConfig,
    model_key,
)

RESNET = ModelConfig(name="test_resnet")


def worker_at(folder: Path, **fields: Any) -> WorkerContext:
    data = DataConfig(source="digits", image_size=32)
    worker_config = {
        "uri": str(folder),
        "seed": 0,
        "data": data,
        "base": BaseConfig(),
        "metric": "top1",
    }
    return WorkerContext(WorkerConfig(**{**worker_config, "batchnorm_samples": 64, **fields}))


def facts_of(
    worker: WorkerContext,
    *models: ModelConfig,
    optimizers: tuple[str, ...] = ("adamw",),
    train_configs: tuple[tuple[str, TrainConfig], ...] = (),
) -> PreflightResult:
    (event,) = preflight(
        PreflightOrder(models=models, optimizers=optimizers, train_configs=train_configs), 1, worker
    )
    assert isinstance(event, Preflighted)
    return event.facts


def base_of(worker: WorkerContext, name: str = "base/abc", **fields: Any) -> Checkpoint:
    (event,) = make_base(BaseOrder(name=name, model=RESNET, **fields), 1, worker)
    assert isinstance(event, BaseReady)
    return event.checkpoint


def scores_of(worker: WorkerContext, checkpoint: Checkpoint, *splits: str) -> Scored:
    cohort = Cohort(id="c", model=RESNET, base="base/abc", batchnorm="recompute")
    order = ScoreOrder(cohort=cohort, checkpoint=checkpoint, splits=splits)
    (event,) = score_checkpoint(order, 1, worker)
    assert isinstance(event, Scored)
    return event


def test_preflight_collects_what_later_orders_need(tmp_path: Path) -> None:
    worker = worker_at(tmp_path)
    vit = ModelConfig(name="test_vit")
    facts = facts_of(worker, RESNET, vit)
    assert facts.classes == tuple("0123456789") and facts.corrupt == ()
    assert facts.splits["val"].count == worker.images.count("val")
    assert facts.splits["val"].fingerprint == worker.images.fingerprint("val")
    assert sum(facts.splits["train"].class_counts) == facts.splits["train"].count
    found = facts.models[model_key(RESNET)]
    assert found.has_batchnorm and not facts.models[model_key(vit)].has_batchnorm
    assert found.preprocessing["input_size"] == [3, 32, 32]
    written = tmp_path / "base" / "abc" / "model.safetensors"
    base_of(worker)
    assert found.model_bytes == written.stat().st_size < found.checkpoint_bytes
    again = facts_of(worker_at(tmp_path / "again"), RESNET, vit)
    assert again == facts and PreflightResult.model_validate_json(facts.model_dump_json()) == facts


def test_preflight_writes_no_splits_for_what_it_refuses(tmp_path: Path) -> None:
    worker = worker_at(tmp_path)
    with pytest.raises(UserError, match="adamw"):
        facts_of(worker, RESNET, optimizers=("adamww",))
    with pytest.raises(UserError, match="test_resnet"):
        facts_of(worker, ModelConfig(name="test_resne"))
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors"):
        facts_of(worker, ModelConfig(name="test_vit", checkpoint=str(tmp_path / "w.safetensors")))
    assert not worker.store.exists("splits.parquet")


@pytest.mark.parametrize(
    ("train", "refusal"),
    [
        ({"unfreeze": [{"epoch": 0, "modules": ["layer9"]}]}, "'layer9'.*layer4"),
        ({"aa": "rand-q7"}, "rand-q7"),
        ({"class_weights": {"ten": 2.0}}, "no class 'ten'"),
        ({"grad_checkpointing": True}, "grad_checkpointing.*DLA"),
    ],
)
def test_missing_features_are_refused_before_training(
    tmp_path: Path, train: dict[str, Any], refusal: str
) -> None:
    model = ModelConfig(name="dla46_c") if "grad_checkpointing" in train else RESNET
    asked = TrainConfig.model_validate(train)
    with pytest.raises(UserError, match=refusal):
        facts_of(worker_at(tmp_path), RESNET, model, train_configs=((model_key(model), asked),))
    if "unfreeze" in train:  # of another model, so not its affair
        vit = ModelConfig(name="test_vit")
        assert facts_of(worker_at(tmp_path), vit, train_configs=((model_key(RESNET), asked),))


def test_folds_are_counted_and_partition_what_trains(tmp_path: Path) -> None:
    data = DataConfig(source="digits", image_size=32, folds=3)
    facts = facts_of(worker_at(tmp_path, data=data), RESNET)
    assert len(facts.folds) == 3 and sum(facts.folds) == facts.splits["train"].count
    assert facts_of(worker_at(tmp_path / "whole"), RESNET).folds == ()


def test_the_optimizers_memory_is_counted_as_it_is(tmp_path: Path) -> None:
    assert [round(state_copies(opt)) for opt in ("sgd", "adamw", "lookahead_adamw")] == [1, 2, 3]
    assert state_copies("fusedadam") in (ADAM_MOMENTS, 2.0)  # wants a GPU and a package
    facts = {
        opts: facts_of(worker_at(tmp_path), RESNET, optimizers=opts).models[model_key(RESNET)]
        for opts in (("sgd",), ("sgd", "adamw"))
    }
    one, two = facts[("sgd",)], facts[("sgd", "adamw")]
    assert two.checkpoint_bytes - one.checkpoint_bytes == pytest.approx(
        4 * one.num_parameters, rel=0.01
    )
    averaged = TrainConfig(model_ema_decay=0.9)
    trains = ((model_key(RESNET), averaged),)
    more = facts_of(worker_at(tmp_path), RESNET, optimizers=("sgd",), train_configs=trains)
    found = more.models[model_key(RESNET)]
    assert found.checkpoint_bytes == one.checkpoint_bytes + one.model_bytes


def test_a_model_without_one_logit_per_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="global_pool"):
        spec = ModelConfig(name="test_vit", kwargs={"global_pool": "wrong"})
        facts_of(worker_at(tmp_path), spec)
    with pytest.raises(UserError, match="33x33 pixels"):
        odd = DataConfig(source="digits", image_size=33)
        facts_of(worker_at(tmp_path, data=odd), ModelConfig(name="test_vit"))


def test_the_base_is_the_same_bytes_for_any_worker_and_another_for_another_seed(
    tmp_path: Path,
) -> None:
    bases = []
    for i, fields in enumerate([{}, {}, {"seed": 1}, {"base": BaseConfig(init="timm")}]):
        worker = worker_at(tmp_path / str(i), **fields)
        facts_of(worker, RESNET)
        torch.manual_seed(i)
        bases.append(base_of(worker))
    assert bases[0] == bases[1]
    assert len({base.sha256 for base in bases}) == 3
    stored = [load_file(tmp_path / str(i) / "base" / "abc" / "model.safetensors") for i in range(4)]
    assert not stored[0]["fc.weight"].any() and stored[3]["fc.weight"].any()
    assert torch.equal(stored[0]["conv1.0.weight"], stored[3]["conv1.0.weight"])
    config = json.loads((tmp_path / "0" / "base" / "abc" / "config.json").read_text())
    assert config["label_names"] == list("0123456789")
    assert timm.create_model(f"local-dir:{tmp_path / '0' / 'base' / 'abc'}", pretrained=True)


@pytest.mark.parametrize("head", ["se", "attention"])
def test_a_base_with_a_head_of_ours_is_the_same_bytes_anywhere(tmp_path: Path, head: Any) -> None:
    spec = ModelConfig(name="test_resnet", head=head)
    bases = []
    for i in range(2):
        worker = worker_at(tmp_path / str(i))
        facts_of(worker, spec)
        torch.manual_seed(i)
        (event,) = make_base(BaseOrder(name="base/abc", model=spec), 1, worker)
        assert isinstance(event, BaseReady)
        bases.append(event.checkpoint)
    assert bases[0] == bases[1]
    stored = load_file(tmp_path / "0" / "base" / "abc" / "model.safetensors")
    assert not stored["fc.weight"].any()
    assert all(t.any() for name, t in stored.items() if "global_pool" in name and t.ndim > 1)


def test_a_base_with_a_source_is_its_bytes(tmp_path: Path) -> None:
    worker = worker_at(tmp_path)
    facts_of(worker, RESNET)
    tensors = worker.model(RESNET).state_dict()
    trunk = write_checkpoint(worker.store, "trunk/00000010", 2, 10, tensors)
    base = base_of(worker, "base/def", source=trunk)
    assert base.sha256 == trunk.sha256 and base.id == "base/def" and base.step == 0


def test_initial_weights_reach_the_base(tmp_path: Path) -> None:
    worker = worker_at(tmp_path)
    facts_of(worker, RESNET)
    donor = timm.create_model("test_resnet", num_classes=3)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    spec = ModelConfig(name="test_resnet", checkpoint=str(tmp_path / "donor.safetensors"))
    list(make_base(BaseOrder(name="base/ghi", model=spec), 1, worker))
    stored = load_file(tmp_path / "base" / "ghi" / "model.safetensors")
    assert torch.equal(stored["conv1.0.weight"], donor.state_dict()["conv1.0.weight"])
    assert not stored["fc.weight"].any() and stored["fc.weight"].shape[0] == 10


def test_scores_are_of_the_checkpoint_and_predictions_are_kept(tmp_path: Path) -> None:
    worker = worker_at(tmp_path, base=BaseConfig(init="timm"))
    facts_of(worker, RESNET)
    checkpoint = base_of(worker)
    with torch.no_grad():  # a warm model of other weights must not matter
        for parameter in worker.model(RESNET).parameters():
            parameter.fill_(0.1)
    first = scores_of(worker, checkpoint, "val", "test")
    keys, labels, rows = read_predictions(worker.store, "base/abc", "test")
    assert keys == worker.images.keys("test")
    assert np.array_equal(labels, worker.images.labels("test"))
    assert first.scores["test"] == metrics_of(rows, labels)
    assert first.scores["test"].count == worker.images.count("test")
    with open_weights(worker.store, checkpoint) as weights:
        assert torch.equal(worker.model(RESNET).state_dict()["fc.weight"], weights["fc.weight"])
    (tmp_path / "base" / "abc" / "model.safetensors").unlink()
    # What is cached needs no weights.
    assert scores_of(worker, checkpoint, "val", "test").scores == first.scores
