"""Evaluation pixels: bit for bit those of timm's transform."""

from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

from tests.image_folders import write_classes
from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.data import eval_pixels, normalise, scan
from workers.models.build import create_model, preprocessing


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "mobilenetv2_035", "test_efficientnet"]
)
@pytest.mark.parametrize("size", [(40, 23), (17, 50), (160, 160)])
def test_pixels_and_normalise_are_timms_transform_bit_for_bit(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4}, size=size)
    spec = DataConfig(root=str(tmp_path), image_size=32 if name != "test_efficientnet" else None)
    images, _, _ = scan(spec, seed=0)
    model = create_model(ModelConfig(name=name), 2, spec)
    config = preprocessing(model, spec)
    overrides = {"img_size": 32} if spec.image_size else {}
    theirs = create_transform(**resolve_model_data_config(model, args=overrides))
    ours = normalise(eval_pixels(images, "train", config), config)
    expected = torch.stack([theirs(images.image("train", i)) for i in range(len(ours))])
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_every_crop_mode_and_crop_pct_is_timms(tmp_path: Path, mode: str) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3}, size=(31, 47))
    spec = DataConfig(root=str(tmp_path), image_size=24, crop_pct=0.8)
    images, _, _ = scan(spec, seed=0)
    overlay = {"pretrained_cfg_overlay": {"crop_mode": mode, "interpolation": "bilinear"}}
    model = create_model(ModelConfig(name="test_resnet", kwargs=overlay), 2, spec)
    config = preprocessing(model, spec)
    assert (config["crop_pct"], config["crop_mode"]) == (0.8, mode)
    data = resolve_model_data_config(model, args={"img_size": 24, "crop_pct": 0.8})
    ours = normalise(eval_pixels(images, "train", config), config)
    assert torch.equal(ours[1], create_transform(**data)(images.image("train", 1)))


def test_the_first_n_pixels_are_those_of_the_whole_split_and_stay_in_memory() -> None:
    images, _, _ = scan(DataConfig(source="digits"), seed=0)
    model = timm.create_model("test_resnet", num_classes=10)
    config = preprocessing(model, DataConfig(source="digits", image_size=16))
    whole = eval_pixels(images, "val", config)
    assert whole.dtype == torch.uint8 and whole.shape == (images.count("val"), 3, 16, 16)
    assert torch.equal(eval_pixels(images, "val", config, count=5), whole[:5])
    assert eval_pixels(images, "val", config) is whole
