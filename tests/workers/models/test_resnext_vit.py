"""Hybrids: a residual network with a transformer block that starts as the identity."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import group_parameters
from torch import nn

from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.errors import UserError
from workers.models.build import create_model, head_parameter_names, init_head, timm_config
from workers.models.pretrained import load_initial
from workers.models.resnext_vit import VIT
from workers.serving.served_model import open_served

TINY = "soupfleet_test_resnet_vit"
SMALL = DataConfig(image_size=32)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def fresh(name: str = TINY, seed: int = 0, **fields: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model(ModelConfig(name=name, **fields), 5, SMALL)
    init_head(model, "timm", seed)
    return model


def block_of(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(f"{VIT}.")}


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_hybrid_of_a_plain_checkpoint_computes_the_same_as_the_plain_network(
    tmp_path: Path, pretrained: bool
) -> None:
    donor, model = fresh("test_resnet", 1), fresh(seed=2)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    before = {name: model.state_dict()[name].clone() for name in block_of(model)}
    spec = ModelConfig(name=TINY, checkpoint=str(tmp_path / "w.safetensors"))
    if pretrained:  # a local file in place of timm's download
        kwargs = {"pretrained_cfg_overlay": {"file": str(tmp_path / "w.safetensors")}}
        spec = ModelConfig(name=TINY, pretrained=True, kwargs=kwargs)
        model = fresh(seed=2, kwargs=kwargs)
    load_initial(model, spec)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    features = donor.eval().forward_features(IMAGES)  # type: ignore[operator]
    assert torch.equal(model.eval().forward_features(IMAGES), features)  # type: ignore[operator]


def test_a_checkpoint_of_a_hybrid_includes_the_block(tmp_path: Path) -> None:
    donor, model = fresh(seed=1), fresh(seed=2)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    load_initial(model, ModelConfig(name=TINY, checkpoint=str(tmp_path / "w.safetensors")))
    for name in donor.state_dict().keys() - head_parameter_names(donor):
        assert torch.equal(model.state_dict()[name], donor.state_dict()[name])
    half = {name: t for name, t in donor.state_dict().items() if name != f"{VIT}.up.bias"}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=rf"no tensor {VIT}\.up\.bias"):
        load_initial(model, ModelConfig(name=TINY, checkpoint=str(tmp_path / "half.safetensors")))


def test_the_block_is_seeded_and_learns_once_its_last_layer_has_left_zero() -> None:
    one, two, other = fresh(seed=1), fresh(seed=1), fresh(seed=2)
    drawn = f"{VIT}.blocks.0.attn.qkv.weight"
    assert torch.equal(one.state_dict()[drawn], two.state_dict()[drawn])
    assert not torch.equal(one.state_dict()[drawn], other.state_dict()[drawn])
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(one(IMAGES), torch.tensor([0, 3])).backward()
        optimizer.step()
    gradients = {n: p.grad for n, p in one.named_parameters() if n in block_of(one)}
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values())
    assert not block_of(one) & head_parameter_names(one)


@pytest.mark.parametrize("size", [32, 48, 96])
def test_it_accepts_any_image_size_and_encodes_positions(size: int) -> None:
    model: Any = fresh().eval()
    images = torch.randn(1, 3, size, size)
    assert model(images).shape == (1, 5)
    block = model.layer4.vit
    nn.init.normal_(block.up.weight)
    features = torch.randn(1, 96, 3, 3)
    turned = block(features.flip(-1)).flip(-1)
    assert not torch.allclose(turned, block(features), atol=1e-4)


def test_the_block_is_the_group_of_layers_below_the_head() -> None:
    model: Any = fresh()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    above = layers["fc.weight"]
    assert {layers[name] for name in layers if name.startswith(VIT)} == {above - 1}
    assert layers["layer4.0.conv1.weight"] == above - 2
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse[f"{VIT}.down.weight"] == coarse["layer4.0.conv1.weight"]


@pytest.mark.parametrize("head", ["linear", "se", "attention"])
def test_timm_rebuilds_a_hybrid_with_any_head_bit_for_bit(tmp_path: Path, head: Any) -> None:
    spec = ModelConfig(name=TINY, head=head, kwargs={"vit_depth": 2})
    torch.manual_seed(0)
    model = create_model(spec, 5, SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    config = timm_config(model.eval(), spec, tuple("abcde"), SMALL)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    again, _, _ = open_served(tmp_path)
    with torch.inference_mode():
        assert torch.equal(model(IMAGES), again(IMAGES))


def test_a_hybrid_without_its_block_is_not_served(tmp_path: Path) -> None:
    model, spec = fresh("test_resnet"), ModelConfig(name=TINY)
    config = timm_config(fresh(), spec, tuple("abcde"), SMALL)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_served(tmp_path)


def test_hybrids_are_registered_and_use_the_weights_of_plain_networks() -> None:
    names = {"soupfleet_resnext50_vit": "resnext50_32x4d", TINY: "test_resnet"}
    names["soupfleet_resnext101_vit"] = "resnext101_32x8d"
    for ours, plain in names.items():
        for tag in (name.partition(".")[2] for name in timm.list_pretrained(f"{plain}.*")):
            theirs = timm.models.get_pretrained_cfg(f"{plain}.{tag}")
            mine = timm.models.get_pretrained_cfg(f"{ours}.{tag}")
            assert mine.hf_hub_id == theirs.hf_hub_id and mine.mean == theirs.mean
    with pytest.raises(UserError, match="soupfleet_resnext50_vit"):
        fresh("soupfleet_resnet50_vit")
    with pytest.raises(UserError, match="no weights 'nonsense'"):
        fresh(f"{TINY}.nonsense")
