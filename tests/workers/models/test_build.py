"""Models of timm: building, loading, refusals, and rebuilding by plain timm."""

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import nn

from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.errors import UserError
from workers.models.build import (
    create_model,
    has_batchnorm,
    head_parameter_names,
    init_head,
    preprocessing,
    timm_config,
)
from workers.models.pretrained import assign_weights, load_initial

SMALL = DataConfig(image_size=32)
REAL = [
    ("mobilenetv2_035", {"pad_type": "same"}, "mobilenetv2_035_imagenet1k_backbone"),
    ("mobilenetv2_100", {"pad_type": "same"}, "mobilenetv2_100_imagenet1k_deq"),
    ("vit_tiny_patch16_224", {}, "vit_tiny_patch16_224_imagenet1k"),
]


def real_weights(name: str) -> str:
    folder = os.environ.get("SOUPFLEET_DATA")
    if not folder:
        pytest.skip("SOUPFLEET_DATA names no folder with weights/")
    return str(Path(folder) / "weights" / f"{name}.safetensors")


def fresh(name: str, seed: int = 0, **fields: Any) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(ModelConfig(name=name, **fields), 5, SMALL)


def refusal(model: nn.Module, spec: ModelConfig) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_initial(model, spec)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_is_refused_with_similar_ones() -> None:
    with pytest.raises(UserError, match="resnet18"):
        create_model(ModelConfig(name="resnet81"), 5, SMALL)
    with pytest.raises(UserError, match="no_such_tag"):
        create_model(ModelConfig(name="resnet18.no_such_tag"), 5, SMALL)


def test_arguments_that_timm_does_not_take_are_named() -> None:
    with pytest.raises(UserError, match="wings"):
        fresh("test_resnet", kwargs={"wings": 2})
    with pytest.raises(UserError, match="num_classes"):
        fresh("test_resnet", kwargs={"num_classes": 2})


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "mobilenetv2_035", "test_convnext"])
def test_same_seed_same_model_and_images_of_the_configured_size_fit(name: str) -> None:
    one, two, other = fresh(name, 1), fresh(name, 1), fresh(name, 2)
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    assert not all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert one(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert preprocessing(one, SMALL)["input_size"] == [3, 32, 32]


def test_preprocessing_is_timms_and_survives_json() -> None:
    model = fresh("test_vit")
    for data in (SMALL, DataConfig(), DataConfig(crop_pct=0.5)):
        config = preprocessing(model, data)
        args = {"img_size": data.image_size, "crop_pct": data.crop_pct}
        theirs = resolve_model_data_config(model, args=args)
        assert config == {k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()}
        assert json.loads(json.dumps(config)) == config


def test_batchnorm_is_detected() -> None:
    assert has_batchnorm(fresh("mobilenetv2_035")) and not has_batchnorm(fresh("test_vit"))


def test_a_zero_head_is_zero_and_a_timm_head_is_seeded() -> None:
    for name in ("test_resnet", "test_vit", "mobilenetv2_035"):
        model = fresh(name)
        body = {n: p.clone() for n, p in model.named_parameters()}
        head = head_parameter_names(model)
        assert len(head) == 2
        init_head(model, "zero", 0)
        assert all(not model.get_parameter(n).any() for n in head)
        torch.manual_seed(7)
        as_timm = create_model(ModelConfig(name=name), 5, SMALL)
        torch.manual_seed(0)
        before = torch.rand(1)
        torch.manual_seed(0)
        init_head(model, "timm", 7)
        assert torch.equal(before, torch.rand(1))  # the global generator is left alone
        for n, p in model.named_parameters():
            assert torch.equal(p, as_timm.get_parameter(n) if n in head else body[n])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_initial_weights_are_copied_and_the_head_is_not(tmp_path: Path, suffix: str) -> None:
    donor, model = fresh("test_resnet", 1), fresh("test_resnet", 2)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": donor.state_dict(), "args": argparse.Namespace(lr=1)}, file)
    else:
        save_file(donor.state_dict(), file)
    head = {name: model.get_parameter(name).clone() for name in head_parameter_names(model)}
    load_initial(model, ModelConfig(name="test_resnet", checkpoint=str(file)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, head.get(name, donor.state_dict()[name]))


def test_position_embeddings_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = timm.create_model("test_vit", num_classes=1000)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    model = fresh("test_vit", 1)
    load_initial(model, ModelConfig(name="test_vit", checkpoint=str(tmp_path / "w.safetensors")))
    assert model.state_dict()["pos_embed"].shape != donor.state_dict()["pos_embed"].shape
    assert torch.equal(model.state_dict()["norm.weight"], donor.state_dict()["norm.weight"])


def test_weights_of_another_architecture_are_refused_by_tensor_and_shapes(tmp_path: Path) -> None:
    save_file(fresh("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    spec = ModelConfig(name="test_vit", checkpoint=str(tmp_path / "resnet.safetensors"))
    assert "cls_token" in refusal(fresh("test_vit"), spec)
    weights = fresh("test_resnet").state_dict()
    weights["layer1.0.conv1.weight"] = torch.zeros(3, 4)
    save_file(weights, tmp_path / "wide.safetensors")
    spec = ModelConfig(name="test_resnet", checkpoint=str(tmp_path / "wide.safetensors"))
    message = refusal(fresh("test_resnet"), spec)
    assert "layer1.0.conv1.weight" in message and "[3, 4]" in message and "3, 3]" in message
    weights = fresh("test_resnet").state_dict() | {"layer9.weight": torch.zeros(2)}
    save_file(weights, tmp_path / "deep.safetensors")
    spec = ModelConfig(name="test_resnet", checkpoint=str(tmp_path / "deep.safetensors"))
    assert "layer9.weight" in refusal(fresh("test_resnet"), spec)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch", "legacy", "plain"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.pth"
    content = {"state_dict": fresh("test_resnet").state_dict(), "extra": Malicious(marker)}
    if how == "plain":
        file.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    message = refusal(fresh("test_resnet"), ModelConfig(name="test_resnet", checkpoint=str(file)))
    assert "weights.pth needs unpickling" in message and ".safetensors" in message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["absent.pth", "text.pth", "text.safetensors", "w.npz", "e.pth"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    if name.startswith("text"):
        (tmp_path / name).write_text("these are no weights, but a long enough text")
    elif name != "absent.pth":
        (tmp_path / name).write_bytes(b"")
    spec = ModelConfig(name="test_resnet", checkpoint=str(tmp_path / name))
    assert name in refusal(fresh("test_resnet"), spec)


@pytest.mark.parametrize(("name", "kwargs", "file"), REAL)
def test_real_weights_load_at_96_pixels(name: str, kwargs: dict[str, Any], file: str) -> None:
    spec = ModelConfig(name=name, kwargs=kwargs, checkpoint=real_weights(file))
    model = create_model(spec, 7, DataConfig(image_size=96))
    load_initial(model, spec)
    stored, live = load_file(real_weights(file)), model.state_dict()
    for tensor in sorted(live.keys() - head_parameter_names(model) - {"pos_embed"}):
        assert torch.equal(live[tensor], stored[tensor]), tensor
    assert model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 7)


def test_real_weights_of_a_wider_network_are_refused() -> None:
    spec = ModelConfig(name="mobilenetv2_035", checkpoint=real_weights(REAL[1][2]))
    message = refusal(create_model(spec, 7, SMALL), spec)
    assert "conv_stem.weight" in message and "[32, 3, 3, 3]" in message


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {}),
        ("test_resnet", {}),
        ("mobilenetv2_035", {"pad_type": "same"}),
        (
            "test_resnet",
            {"pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5], "crop_mode": "squash"}},
        ),
    ],
)
def test_plain_timm_rebuilds_model_preprocessing_and_labels(
    tmp_path: Path, name: str, kwargs: dict[str, Any]
) -> None:
    spec, classes = ModelConfig(name=name, kwargs=kwargs), ("ant", "bee", "cat", "dog", "elk")
    data = DataConfig(image_size=48, crop_pct=0.75)
    model = create_model(spec, 5, data).eval()
    config = json.dumps(timm_config(model, spec, classes, data))
    (tmp_path / "config.json").write_text(config)
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.pretrained_cfg["label_names"] == list(classes)
    theirs = resolve_model_data_config(again)
    ours = preprocessing(model, data)
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()} == ours
    image = torch.randn(2, 3, 48, 48)
    assert torch.equal(model(image), again(image))


def test_assigned_weights_must_fit_exactly() -> None:
    model, donor = fresh("test_resnet", 1), fresh("test_resnet", 2)
    assign_weights(model, donor.state_dict(), "donor")
    assert all(map(torch.equal, model.state_dict().values(), donor.state_dict().values()))
    with pytest.raises(UserError, match=r"donor.*tensor extra"):
        assign_weights(model, donor.state_dict() | {"extra": torch.zeros(1)}, "donor")
    with pytest.raises(UserError, match=r"donor.*fc.bias"):
        assign_weights(model, donor.state_dict() | {"fc.bias": torch.zeros(6)}, "donor")


def test_weights_that_are_not_published_are_a_user_error() -> None:
    spec = ModelConfig(name="mobilenetv2_035", pretrained=True)  # timm has an architecture only
    assert "model.checkpoint" in refusal(fresh("mobilenetv2_035"), spec)
