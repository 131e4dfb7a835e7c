"""Architectures: all are trained, scored, recomputed (BatchNorm) and rebuilt by timm."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.config.train import TrainConfig
from workers.data import normalise
from workers.merging.batchnorm import recompute, statistics
from workers.models.build import (
    create_model,
    has_batchnorm,
    head_parameter_names,
    init_head,
    preprocessing,
    timm_config,
)
from workers.scoring.forward import logits
from workers.serving.served_model import open_served
from workers.training.optim import create_optimizer

CLASSES = ("ant", "bee", "cat", "dog", "elk")
LIGHT = [
    ("resnet50", "linear"),
    ("resnest14d", "linear"),
    ("densenet121", "linear"),
    ("efficientnet_b0", "linear"),
    ("vit_small_patch16_224", "linear"),
    ("coatnet_nano_rw_224", "linear"),
    ("convnext_tiny", "linear"),
    ("mobilenetv2_100", "linear"),
    ("mobilenetv2_100", "se"),
    ("efficientnet_b0", "attention"),
    ("vit_tiny_patch16_224", "se"),
    ("vit_tiny_patch16_224", "attention"),
    ("coatnet_nano_rw_224", "se"),
]
HEAVY = [
    ("coatnet_0_224", "attention"),
    ("resnest200e", "linear"),
    ("resnest200e", "se"),
    ("resnext101_32x8d", "linear"),
    ("densenet121", "attention"),
    ("resnet50", "attention"),
    ("vit_base_patch16_clip_224", "linear"),
    ("vit_base_patch16_clip_224", "attention"),
    ("convnext_tiny", "se"),
    ("eva02_tiny_patch14_224", "attention"),
    ("swin_tiny_patch4_window7_224", "attention"),
    ("soupfleet_resnext50_vit", "linear"),
    ("soupfleet_resnext50_vit", "se"),
    ("soupfleet_resnext101_vit", "attention"),
]
SIZE = {"eva02_tiny_patch14_224": 56, "swin_tiny_patch4_window7_224": 224}
"""Input size in pixels, if it is not 64."""


def _cases() -> list[Any]:
    marked = [pytest.param(*case, marks=pytest.mark.slow) for case in HEAVY]
    return [*LIGHT, *marked]


@pytest.mark.parametrize(("name", "head"), _cases())
def test_it_learns_is_scored_and_is_rebuilt(tmp_path: Path, name: str, head: Any) -> None:
    spec, data = ModelConfig(name=name, head=head), DataConfig(image_size=SIZE.get(name, 64))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model(spec, len(CLASSES), data)
    init_head(model, "timm", 0)
    config = preprocessing(model, data)
    assert config["input_size"] == [3, data.image_size, data.image_size]
    pixels = torch.randint(0, 256, (2, *config["input_size"]), dtype=torch.uint8)
    _learn(model, normalise(pixels, config))
    _recompute(model, pixels, config)
    _rebuild(tmp_path, model, spec, data, normalise(pixels, config))


def _learn(model: nn.Module, images: torch.Tensor) -> None:
    train = TrainConfig(opt="sgd", lr=1e-3)
    optimizer = create_optimizer(model, train, head_parameter_names(model))
    before = copy.deepcopy(model.state_dict())
    loss = nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 3]))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    optimizer.step()
    after = model.state_dict()
    moved = {
        name for name, _ in model.named_parameters() if not torch.equal(after[name], before[name])
    }
    # A small gradient does not change a weight of 1.
    assert moved & head_parameter_names(model) and moved - head_parameter_names(model)


def _recompute(model: nn.Module, pixels: torch.Tensor, config: dict[str, Any]) -> None:
    before = {name: model.state_dict()[name].clone() for name in statistics(model)}
    assert bool(before) == has_batchnorm(model)
    if before:
        recompute(model, pixels, config, "cpu")
        now = model.state_dict()
        assert any(not torch.equal(now[name], value) for name, value in before.items())
        assert all(now[name].isfinite().all() for name in before)


def _rebuild(
    folder: Path, model: nn.Module, spec: ModelConfig, data: DataConfig, images: torch.Tensor
) -> None:
    config = timm_config(model, spec, CLASSES, data)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    again, theirs, labels = open_served(folder)
    assert labels == CLASSES and theirs == preprocessing(model, data)
    with torch.inference_mode():
        expected = model.eval()(images)
        assert expected.isfinite().all() and torch.equal(again(images), expected)


def test_small_ones_with_a_head_are_scored() -> None:
    for name in ("soupfleet_test_resnet_vit", "test_vit", "mobilenetv2_035"):
        data = DataConfig(image_size=32)
        model = create_model(ModelConfig(name=name, head="se"), len(CLASSES), data)
        pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        rows = logits(model, pixels, preprocessing(model, data), "cpu")
        assert rows.shape == (3, 5) and torch.from_numpy(rows).isfinite().all()
