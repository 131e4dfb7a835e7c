"""Imported checkpoints: read as timm's train script writes them, refused if they do not fit,
committed like a run's own."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.workers.small_soups import DATA, Pool, make_pool
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig
from workers.dispatch import perform
from workers.errors import UserError
from workers.models.build import create_model
from workers.models.model_files import config_of, weights_file
from workers.storage.checkpoints import open_weights
from workers.storage.predictions import read_predictions
from workers.training.import_weights import adopt, fitting_weights
from workers.types import SELECTION, RunSpec, TrainOrder

RESNET = ModelConfig(name="test_resnet")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(5)
    return create_model(RESNET, 4, DATA)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _saved(folder: Path, content: Any) -> TrainConfig:
    file = folder / "model.pth.tar"
    torch.save(content, file)
    return TrainConfig(weights=str(file))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", ""])
def test_wrappers_and_prefixes_of_train_scripts_come_off(
    model: nn.Module, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    tensors = _tensors(model)
    written = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    facts = {"epoch": 7, "args": argparse.Namespace(lr=0.1)}
    train = _saved(tmp_path, {**facts, wrapper: written} if wrapper else written)
    found = fitting_weights(model, train)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_averaged_weights_are_taken_only_when_asked_for(model: nn.Module, tmp_path: Path) -> None:
    raw = _tensors(model)
    averaged = {name: t / 2 if t.is_floating_point() else t for name, t in raw.items()}
    for wrappers in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        train = _saved(tmp_path, dict(zip(wrappers, (raw, averaged), strict=True)))
        found = fitting_weights(model, train)
        assert all(torch.equal(found[name], tensor) for name, tensor in raw.items())
        found = fitting_weights(model, train.model_copy(update={"weights_ema": True}))
        assert all(torch.equal(found[name], tensor) for name, tensor in averaged.items())


def test_missing_averaged_weights_are_refused(model: nn.Module, tmp_path: Path) -> None:
    train = _saved(tmp_path, {"state_dict": _tensors(model)})
    with pytest.raises(UserError, match=r"model\.pth\.tar holds no averaged weights.*--ema"):
        fitting_weights(model, train.model_copy(update={"weights_ema": True}))


def test_a_missing_counter_is_allowed(model: nn.Module, tmp_path: Path) -> None:
    few = {n: t for n, t in _tensors(model).items() if not n.endswith("num_batches_tracked")}
    assert fitting_weights(model, _saved(tmp_path, few)).keys() == model.state_dict().keys()


def _lacks(tensors: dict[str, Tensor]) -> None:
    del tensors[next(iter(tensors))]


def _surplus(tensors: dict[str, Tensor]) -> None:
    tensors["extra.weight"] = torch.zeros(2)


def _reshaped(tensors: dict[str, Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name][:1]


def _other_classes(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = torch.zeros(9, tensors["fc.weight"].shape[1])


def _halved(tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].half()


def _diverged(tensors: dict[str, Tensor]) -> None:
    tensors["fc.bias"][1] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_lacks, "has no tensor"),
        (_surplus, r"has a tensor extra\.weight"),
        (_reshaped, "has shape"),
        (_other_classes, r"fc\.weight has 9 rows.*the images have 4"),
        (_halved, r"fc\.weight is torch\.float16"),
        (_diverged, r"1 of 4 values of tensor 'fc\.bias' are not finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_and_tensor(
    model: nn.Module, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    tensors = _tensors(model)
    spoil(tensors)
    with pytest.raises(UserError, match=rf"model\.pth\.tar:? .*{said}.*; \w+"):
        fitting_weights(model, _saved(tmp_path, tensors))


class _Planted:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _run_me, ("gone",)


def _run_me(name: str) -> None:
    raise AssertionError("code of a checkpoint was run")


def test_a_checkpoint_with_code_in_it_is_not_opened(model: nn.Module, tmp_path: Path) -> None:
    train = _saved(tmp_path, {"state_dict": _tensors(model), "args": _Planted()})
    with pytest.raises(UserError, match=r"model\.pth\.tar needs unpickling"):
        fitting_weights(model, train)


# Adopting


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), RESNET, num_members=1)


def test_an_imported_checkpoint_has_the_same_bytes_and_score(pool: Pool) -> None:
    member, worker = pool.members[0], pool.worker
    with open_weights(worker.store, member) as weights:
        tensors = {name: tensor.clone() for name, tensor in weights.items()}
    file = Path(worker.config.uri) / "elsewhere.safetensors"
    save_file(tensors, file)
    run = RunSpec(id="foreign", model=RESNET, train=TrainConfig(weights=str(file)))
    start = member.model_copy(update={"name": pool.cohort.base, "attempt": None})
    order = TrainOrder(run=run, start=start, stop_step=1)
    started, committed, trained = perform(worker, order, attempt=2)
    assert (started.kind, trained.kind) == ("started", "trained")
    assert committed.kind == "checkpoint" and trained.kind == "trained"
    assert committed.run == "foreign" and trained.step == order.stop_step
    assert committed.checkpoint.id == "foreign/00000001-2"
    assert committed.checkpoint.sha256 == member.sha256
    assert committed.score is not None and committed.score.top1 == pool.scores[0]
    _, _, mine = read_predictions(worker.store, committed.checkpoint.id, SELECTION)
    _, _, theirs = read_predictions(worker.store, member.id, SELECTION)
    assert (mine == theirs).all()


def test_importing_refuses_what_preflight_refuses(pool: Pool, tmp_path: Path) -> None:
    train = _saved(tmp_path, {"a": torch.zeros(1)})
    run = RunSpec(id="foreign", model=RESNET, train=train)
    order = TrainOrder(run=run, start=pool.members[0], stop_step=1)
    with pytest.raises(UserError, match="has no tensor"):
        list(adopt(order, 1, pool.worker))


# What lies beside


def test_the_configuration_beside_a_served_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert config_of(weights_file(str(tmp_path))) is None
    said = {"architecture": "test_vit", "label_names": ["a", "b"], "num_features": 3}
    (tmp_path / "config.json").write_text(json.dumps(said))
    found = config_of(weights_file(str(tmp_path)))
    assert found is not None and found.label_names == ("a", "b")


def test_a_checkpoint_of_a_run_has_the_configuration_of_its_base(tmp_path: Path) -> None:
    step = tmp_path / "runs" / "r" / "checkpoints" / "00000003-1"
    base = tmp_path / "base" / "abc"
    for folder in (step, base):
        folder.mkdir(parents=True)
    (step / "model.safetensors").touch()
    (step / "manifest.json").write_text(json.dumps({"base": "base/abc"}))
    (base / "config.json").write_text(json.dumps({"label_names": ["x", "y"]}))
    found = config_of(weights_file(str(step)))
    assert found is not None and found.label_names == ("x", "y")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder without model\.safetensors"):
        weights_file(str(tmp_path))


def test_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"label_names": 3}')
    with pytest.raises(UserError, match="is no configuration of a timm model"):
        config_of(tmp_path / "model.safetensors")
