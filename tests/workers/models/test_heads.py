"""Heads: squeeze-and-excitation and attention pooling on networks of several families."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.errors import UserError
from workers.models.build import (
    create_model,
    head_parameter_names,
    init_head,
    preprocessing,
    timm_config,
)
from workers.models.pretrained import load_initial
from workers.serving.served_model import open_served
from workers.types import model_key

SMALL = DataConfig(image_size=32)
CLASSES = ("ant", "bee", "cat", "dog", "elk")
HEADS = ("se", "attention")
NAMES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CLASSIFIER = {"test_resnet": "fc", "test_vit": "head", "test_convnext": "head.fc"}

REBUILD = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
import workers.model
torch.set_num_threads(1)
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
images = load_file(sys.argv[1] + "/../images.safetensors")["images"]
with torch.inference_mode():
    save_file({"logits": model(images)}, sys.argv[1] + "/../logits.safetensors")
"""


def fresh(name: str, head: Any, seed: int = 0, **fields: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model(ModelConfig(name=name, head=head, **fields), 5, SMALL)
    init_head(model, "timm", seed)
    return model


def serve(folder: Path, model: nn.Module, spec: ModelConfig) -> dict[str, Any]:
    """Write the files of a served soup; return its config.json."""
    folder.mkdir()
    config = timm_config(model, spec, CLASSES, SMALL)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return config


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_a_head_adds_parameters_and_leaves_all_names_of_the_backbone(name: str, head: Any) -> None:
    plain, model = fresh(name, "linear"), fresh(name, head)
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() == model.state_dict().keys() - added
    assert added < head_parameter_names(model)
    assert head_parameter_names(model) - added == head_parameter_names(plain)
    assert model(IMAGES).shape == (2, 5)
    larger = torch.zeros(2, 3, 64, 64)
    assert name == "test_vit" or model(larger).shape == (2, 5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_timm_rebuilds_what_is_served_bit_for_bit(tmp_path: Path, name: str, head: Any) -> None:
    spec = ModelConfig(name=name, head=head)
    model = fresh(name, head).eval()
    config = serve(tmp_path / "soup", model, spec)
    again, config_of_it, labels = open_served(tmp_path / "soup")
    assert labels == CLASSES
    assert config_of_it == preprocessing(model, SMALL)
    with torch.inference_mode():
        assert torch.equal(model(IMAGES), again(IMAGES))
        assert torch.equal(model(IMAGES), copy.deepcopy(model)(IMAGES))
    ours = config["architecture"].startswith("soupfleet_")
    assert ours != (name == "test_vit" and head == "attention")  # timm has an option for that


def test_another_process_needs_one_import(tmp_path: Path) -> None:
    """It gives the same bits with as many threads: their number is part of a CPU result's bits."""
    torch.set_num_threads(1)
    spec = ModelConfig(name="test_resnet", head="se")
    model = fresh("test_resnet", "se").eval()
    serve(tmp_path / "soup", model, spec)
    save_file({"images": IMAGES}, tmp_path / "images.safetensors")
    code = [sys.executable, "-c", REBUILD, str(tmp_path / "soup")]
    subprocess.run(code, check=True, cwd=Path(__file__).parents[3])
    with torch.inference_mode():
        assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], model(IMAGES))


def test_a_served_folder_without_the_head_is_refused(tmp_path: Path) -> None:
    spec = ModelConfig(name="test_resnet", head="se")
    serve(tmp_path / "soup", fresh("test_resnet", "se"), spec)
    plain = fresh("test_resnet", "linear")
    save_file(plain.state_dict(), tmp_path / "soup" / "model.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_served(tmp_path / "soup")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_every_parameter_of_a_head_learns(name: str, head: Any) -> None:
    model = fresh(name, head)
    loss = nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 3]))
    loss.backward()
    for parameter in head_parameter_names(model):
        gradient = model.get_parameter(parameter).grad
        assert gradient is not None and gradient.isfinite().all(), parameter


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CLASSIFIER)
def test_only_the_classifier_starts_at_zero_and_the_rest_from_the_seed(
    name: str, head: Any
) -> None:
    one, two, other = fresh(name, head, 1), fresh(name, head, 2), fresh(name, head, 3)
    body = {n: t.clone() for n, t in one.state_dict().items()}
    for model, seed in ((one, 7), (two, 7), (other, 8)):
        init_head(model, "zero", seed)
    names = head_parameter_names(one)
    zeros = {n for n in names if n.startswith(f"{CLASSIFIER[name]}.") and "pool" not in n}
    assert len(zeros) == 2
    for n in names:
        parameter = one.get_parameter(n)
        assert torch.equal(parameter, two.get_parameter(n))
        assert bool(parameter.any()) == (n not in zeros and _is_drawn(fresh(name, head), n))
    drawn = [n for n in names if one.get_parameter(n).any()]
    assert any(not torch.equal(one.get_parameter(n), other.get_parameter(n)) for n in drawn)
    assert all(torch.equal(body[n], t) for n, t in one.state_dict().items() if n not in names)


def _is_drawn(model: nn.Module, name: str) -> bool:
    """Whether timm does not start this parameter at zero, as it does some biases."""
    return bool(model.get_parameter(name).any())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_a_plain_checkpoint_needs_no_tensors_of_the_head(
    tmp_path: Path, name: str, head: Any
) -> None:
    donor, model = fresh(name, "linear", 1), fresh(name, head, 2)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    own = {n: model.get_parameter(n).clone() for n in head_parameter_names(model)}
    load_initial(
        model, ModelConfig(name=name, head=head, checkpoint=str(tmp_path / "w.safetensors"))
    )
    for tensor, value in model.state_dict().items():
        assert torch.equal(value, own[tensor] if tensor in own else donor.state_dict()[tensor])


def test_of_a_checkpoint_with_a_head_only_the_backbone_is_loaded(tmp_path: Path) -> None:
    donor, model = fresh("test_resnet", "se", 1), fresh("test_resnet", "se", 2)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    own = {n: model.get_parameter(n).clone() for n in head_parameter_names(model)}
    spec = ModelConfig(name="test_resnet", head="se", checkpoint=str(tmp_path / "w.safetensors"))
    load_initial(model, spec)
    assert all(torch.equal(model.get_parameter(n), value) for n, value in own.items())
    assert torch.equal(model.state_dict()["conv1.0.weight"], donor.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_published_weights_are_copied_to_the_backbone(tmp_path: Path, name: str, head: Any) -> None:
    donor = timm.create_model(name, num_classes=5, img_size=32) if "vit" in name else None
    donor = donor or timm.create_model(name, num_classes=5)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    # A local file in place of timm's download.
    kwargs = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors")}}
    spec = ModelConfig(name=name, head=head, pretrained=True, kwargs=kwargs)
    model = create_model(spec, 5, SMALL)
    load_initial(model, spec)
    names = model.state_dict().keys() - head_parameter_names(model)
    assert all(torch.equal(model.state_dict()[n], donor.state_dict()[n]) for n in names)


def test_the_norm_of_averaged_tokens_is_that_of_attended_ones(tmp_path: Path) -> None:
    donor, model = fresh("test_vit4", "linear", 1), fresh("test_vit4", "attention", 2)
    weights = donor.state_dict()
    weights["fc_norm.weight"] = torch.full_like(weights["fc_norm.weight"], 3.0)
    save_file(weights, tmp_path / "w.safetensors")
    spec = ModelConfig(
        name="test_vit4", head="attention", checkpoint=str(tmp_path / "w.safetensors")
    )
    load_initial(model, spec)
    assert torch.equal(model.state_dict()["norm.weight"], weights["fc_norm.weight"])


def test_squeeze_and_excitation_sees_every_token_and_timm_pools(tmp_path: Path) -> None:
    model: Any = fresh("test_vit", "se").eval()
    tokens = model.forward_features(IMAGES)
    weighed = model.attn_pool.se(tokens.unsqueeze(1)).squeeze(1)
    gates = (weighed / tokens)[0]
    assert torch.allclose(gates, gates[:1].expand_as(gates), atol=1e-4)
    expected = model.head(model.fc_norm(weighed[:, 0]))
    assert torch.allclose(model(IMAGES), expected, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_mambaout", "mixer_s32_224"])
def test_a_network_without_a_pooling_module_is_refused(name: str, head: Any) -> None:
    with pytest.raises(UserError, match=f"head: {head} has no place in {name}.*head: linear"):
        create_model(ModelConfig(name=name, head=head), 5, DataConfig())


def test_arguments_and_names_that_a_head_sets_are_refused() -> None:
    pooled = ModelConfig(name="test_resnet", head="attention", kwargs={"global_pool": "max"})
    with pytest.raises(UserError, match="global_pool is set by model.head"):
        create_model(pooled, 5, SMALL)
    with pytest.raises(UserError, match=r"model\.head: se"):
        create_model(ModelConfig(name="soupfleet_se"), 5, SMALL)
    with pytest.raises(UserError, match="resnet18"):
        create_model(ModelConfig(name="resnet81", head="se"), 5, SMALL)


def test_a_head_makes_another_cohort() -> None:
    specs = [ModelConfig(name="test_resnet", head=head) for head in ("linear", *HEADS)]
    assert len({model_key(spec) for spec in specs}) == 3
    assert model_key(specs[0]) == model_key(ModelConfig(name="test_resnet"))
