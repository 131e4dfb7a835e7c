"""Parameter groups and learning rates."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from tests.workers.small_runs import make_run
from workers.model import head_parameter_names
from workers.optim import (
    body_lr,
    create_optimizer,
    parameter_groups,
    parameter_names,
)
from workers.schedule import Schedule
from workers.spec import TrainSpec
from workers.types import UserError

STEPS_PER_EPOCH = 5


def _vit() -> nn.Module:
    net: nn.Module = timm.create_model("test_vit", num_classes=3)
    return net


def _rates(spec: TrainSpec, steps: list[int]) -> list[list[float]]:
    net = _vit()
    optimizer = create_optimizer(net, spec, head_parameter_names(net))
    schedule = Schedule(optimizer, spec, STEPS_PER_EPOCH, spec.epochs)
    rates = []
    for step in steps:
        schedule.set(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def test_every_parameter_is_in_exactly_one_group() -> None:
    net = _vit()
    groups = parameter_groups(net, TrainSpec(head_lr=0.1), head_parameter_names(net))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    assert len(groups) == 4


def test_the_same_parameters_decay_as_in_timm() -> None:
    net = _vit()
    groups = parameter_groups(net, TrainSpec(), head_parameter_names(net))
    ours = {name for group in groups if group["weight_decay"] for name in group["names"]}
    timms = param_groups_weight_decay(net, 0.05, no_weight_decay_list=net.no_weight_decay())
    decayed = {id(p) for group in timms if group["weight_decay"] for p in group["params"]}
    assert ours == {name for name, p in net.named_parameters() if id(p) in decayed}


def test_the_head_learns_at_its_own_rate() -> None:
    net = _vit()
    head = head_parameter_names(net)
    optimizer = create_optimizer(net, TrainSpec(lr=0.01, head_lr=0.05), head)
    Schedule(optimizer, TrainSpec(lr=0.01, head_lr=0.05), STEPS_PER_EPOCH, 5).set(0)
    names = iter(parameter_names(net, optimizer))
    for group in optimizer.param_groups:
        in_head = {next(names) in head for _ in group["params"]}
        assert in_head == {group["lr"] == pytest.approx(0.05)}


def test_a_frozen_body_leaves_the_head_to_the_optimizer() -> None:
    net = _vit()
    head = head_parameter_names(net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in head)
    optimizer = create_optimizer(net, TrainSpec(), head)
    assert set(parameter_names(net, optimizer)) == head


@pytest.mark.parametrize("sched", ["cosine", "poly", "tanh", "none"])
def test_the_rate_is_a_function_of_the_step_alone(sched: str) -> None:
    spec = make_run(sched=sched, epochs=4, warmup_epochs=1, head_lr=0.07, min_lr=1e-4).train
    steps = list(range(4 * STEPS_PER_EPOCH))
    undisturbed = _rates(spec, steps)
    for start in (1, STEPS_PER_EPOCH, 13):
        assert _rates(spec, steps[start:]) == undisturbed[start:]


@pytest.mark.parametrize("sched", ["cosine", "poly", "tanh"])
def test_the_rate_warms_up_and_then_falls_to_its_minimum(sched: str) -> None:
    spec = TrainSpec(sched=sched, epochs=4, warmup_epochs=1, lr=0.1, min_lr=0.01)
    rates = [group[0] for group in _rates(spec, list(range(4 * STEPS_PER_EPOCH + 1)))]
    assert rates[:STEPS_PER_EPOCH] == sorted(rates[:STEPS_PER_EPOCH])
    assert rates[STEPS_PER_EPOCH:] == sorted(rates[STEPS_PER_EPOCH:], reverse=True)
    assert rates[0] < 1e-4 and rates[-1] == pytest.approx(0.01)


def test_without_a_schedule_the_rate_stays() -> None:
    rates = _rates(TrainSpec(sched="none", lr=0.1, epochs=2), [0, 3, 9])
    assert all(rate == pytest.approx(0.1) for group in rates for rate in group)


def test_the_body_rate_is_told_without_the_heads_scale() -> None:
    net = _vit()
    spec = TrainSpec(lr=0.01, head_lr=0.05)
    optimizer = create_optimizer(net, spec, head_parameter_names(net))
    Schedule(optimizer, spec, STEPS_PER_EPOCH, spec.epochs).set(0)
    assert body_lr(optimizer) == pytest.approx(0.01)


def test_an_unknown_optimizer_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match="'adamww'; nearest: .*adamw"):
        create_optimizer(_vit(), TrainSpec(opt="adamww"), set())


def test_the_case_of_an_optimizers_name_does_not_matter() -> None:
    net = _vit()
    optimizer = create_optimizer(net, TrainSpec(opt="AdamW"), head_parameter_names(net))
    assert isinstance(optimizer, torch.optim.AdamW)


def test_an_optimizer_that_needs_gradients_of_gradients_is_refused() -> None:
    with pytest.raises(UserError, match="no first-order optimizer 'adahessian'"):
        create_optimizer(_vit(), TrainSpec(opt="adahessian"), set())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device")
def test_an_optimizer_that_lacks_its_device_is_refused() -> None:
    with pytest.raises(UserError, match="train.opt: fusedadam cannot be used here: CUDA required"):
        create_optimizer(_vit(), TrainSpec(opt="fusedadam"), set())
