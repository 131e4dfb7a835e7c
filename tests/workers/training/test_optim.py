"""Parameter groups and learning rates."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from workers.config.train import TrainConfig
from workers.errors import UserError
from workers.models.build import head_parameter_names
from workers.training.lr_schedule import Schedule
from workers.training.optim import (
    body_lr,
    create_average,
    create_optimizer,
    layer_of,
    parameter_groups,
    parameter_names,
)

STEPS_PER_EPOCH = 5


def _vit() -> nn.Module:
    net: nn.Module = timm.create_model("test_vit", num_classes=3)
    return net


def test_every_parameter_is_in_exactly_one_group() -> None:
    net = _vit()
    groups = parameter_groups(net, TrainConfig(head_lr=0.1), head_parameter_names(net))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    assert len(groups) == 4


def test_the_same_parameters_decay_as_in_timm() -> None:
    net = _vit()
    groups = parameter_groups(net, TrainConfig(), head_parameter_names(net))
    ours = {name for group in groups if group["weight_decay"] for name in group["names"]}
    timms = param_groups_weight_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
    decayed = {id(p) for group in timms if group["weight_decay"] for p in group["params"]}
    assert ours == {name for name, p in net.named_parameters() if id(p) in decayed}


def test_the_head_learns_at_its_own_rate() -> None:
    net = _vit()
    head = head_parameter_names(net)
    optimizer = create_optimizer(net, TrainConfig(lr=0.01, head_lr=0.05), head)
    Schedule(optimizer, TrainConfig(lr=0.01, head_lr=0.05), STEPS_PER_EPOCH, 5).set(0)
    names = iter(parameter_names(net, optimizer))
    for group in optimizer.param_groups:
        in_head = {next(names) in head for _ in group["params"]}
        assert in_head == {group["lr"] == pytest.approx(0.05)}


def test_a_frozen_body_leaves_the_head_to_the_optimizer() -> None:
    net = _vit()
    head = head_parameter_names(net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in head)
    optimizer = create_optimizer(net, TrainConfig(), head)
    assert set(parameter_names(net, optimizer)) == head


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_layers_decay_as_in_timm(name: str) -> None:
    net: nn.Module = timm.create_model(name, num_classes=3)
    groups = parameter_groups(net, TrainConfig(layer_decay=0.5), head_parameter_names(net))
    ours = {name: group["lr_scale"] for group in groups for name in group["names"]}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    timms = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(net, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert ours == timms and len(set(ours.values())) > 3


def test_a_head_rate_of_its_own_goes_before_layer_decay() -> None:
    net = _vit()
    head = head_parameter_names(net)
    spec = TrainConfig(lr=0.01, head_lr=0.05, layer_decay=0.5)
    groups = parameter_groups(net, spec, head)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert {scales[name] for name in head} == {5.0}
    assert scales["blocks.0.attn.qkv.weight"] < scales["blocks.1.attn.qkv.weight"] < 1


def test_a_model_without_layers_of_its_own_is_cut_into_groups() -> None:
    layers = layer_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert set(layers.values()) == {0}


def test_an_average_starts_as_the_network_and_follows_it() -> None:
    net = nn.Linear(2, 2)
    assert create_average(net, TrainConfig()) is None
    average = create_average(net, TrainConfig(model_ema_decay=0.75))
    assert average is not None
    old, new = net.weight.detach().clone(), net.weight.detach() + 1
    with torch.no_grad():
        net.weight += 1
    average.update(net, step=2)
    assert torch.allclose(average.module.weight, 0.75 * old + 0.25 * new)


def test_the_body_rate_is_without_the_heads_scale() -> None:
    net = _vit()
    spec = TrainConfig(lr=0.01, head_lr=0.05)
    optimizer = create_optimizer(net, spec, head_parameter_names(net))
    Schedule(optimizer, spec, STEPS_PER_EPOCH, spec.epochs).set(0)
    assert body_lr(optimizer) == pytest.approx(0.01)


def test_an_unknown_optimizer_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match="'adamww'; nearest: .*adamw"):
        create_optimizer(_vit(), TrainConfig(opt="adamww"), set())


def test_the_case_of_an_optimizers_name_does_not_matter() -> None:
    net = _vit()
    optimizer = create_optimizer(net, TrainConfig(opt="AdamW"), head_parameter_names(net))
    assert isinstance(optimizer, torch.optim.AdamW)


def test_an_optimizer_that_needs_gradients_of_gradients_is_refused() -> None:
    with pytest.raises(UserError, match="no first-order optimizer 'adahessian'"):
        create_optimizer(_vit(), TrainConfig(opt="adahessian"), set())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device")
def test_an_optimizer_that_lacks_its_device_is_refused() -> None:
    with pytest.raises(UserError, match="train.opt: fusedadam cannot be used here: CUDA required"):
        create_optimizer(_vit(), TrainConfig(opt="fusedadam"), set())
