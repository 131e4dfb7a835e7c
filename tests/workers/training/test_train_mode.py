"""Training mode of a network, and that it is undone."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.workers.small_runs import RESNET, make_run
from workers.errors import UserError
from workers.training.train_mode import TrainMode, contiguous
from workers.training.unfreezing import UnfreezePhase, phases

ALL = UnfreezePhase(0, 2, ("all",))
EVERYTHING: dict[str, Any] = {"channels_last": True, "grad_checkpointing": True, "bn_freeze": True}


def _net(name: str = "test_resnet") -> nn.Module:
    net: nn.Module = timm.create_model(name, num_classes=3)
    return net


def _state_of(net: nn.Module) -> list[Any]:
    """The state that an order might change."""
    parameters = [(p.requires_grad, p.stride()) for p in net.parameters()]
    modes = [module.training for module in net.modules()]
    return [parameters, modes, net.grad_checkpointing, net._compiled_call_impl]


def test_a_network_is_afterwards_as_it_was() -> None:
    net = _net()
    net.eval()
    net.get_parameter("conv1.0.weight").requires_grad_(False)
    before = _state_of(net)
    run = make_run(model=RESNET, **EVERYTHING, unfreeze=[{"epoch": 0, "modules": "layer4"}])
    with pytest.raises(RuntimeError), TrainMode(net, run, "cpu") as mode:
        mode.begin(phases(run)[0])
        changed = _state_of(net)
        raise RuntimeError
    assert all(old != new for old, new in zip(before[:3], changed[:3], strict=True))
    assert _state_of(net) == before


def test_a_pause_shows_the_plain_network_and_keeps_requires_grad() -> None:
    net = _net()
    plain = _state_of(net)
    run = make_run(model=RESNET, **EVERYTHING)
    with TrainMode(net, run, "cpu") as mode:
        mode.begin(ALL)
        learning = _state_of(net)
        with mode.paused():
            assert _state_of(net)[0] == plain[0] and not net.grad_checkpointing
        assert _state_of(net) == learning


def test_a_parameter_that_is_never_trained_is_not_unfrozen() -> None:
    net = _net()
    net.get_parameter("conv1.0.weight").requires_grad_(False)
    with TrainMode(net, make_run(model=RESNET), "cpu") as mode:
        mode.begin(ALL)
        assert not net.get_parameter("conv1.0.weight").requires_grad


def test_batchnorm_of_a_frozen_part_keeps_its_statistics() -> None:
    net = _net()
    with TrainMode(net, make_run(model=RESNET), "cpu") as mode:
        mode.begin(UnfreezePhase(0, 1, ("layer4",)))
        norms = {n: m.training for n, m in net.named_modules() if isinstance(m, _BatchNorm)}
        assert all(training == name.startswith("layer4.") for name, training in norms.items())
        mode.begin(ALL)
        assert all(module.training for module in net.modules())


def test_gradients_are_the_same_with_checkpointing() -> None:
    inputs = torch.randn(2, 3, 32, 32)
    gradients = []
    net = _net("test_vit")
    for on in (False, True):
        copied = copy.deepcopy(net)
        with TrainMode(copied, make_run(grad_checkpointing=on), "cpu") as mode:
            mode.begin(ALL)
            copied(nn.functional.interpolate(inputs, 160)).sum().backward()
        gradients.append([p.grad for p in copied.parameters()])
    pairs = zip(*gradients, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)


def test_a_model_that_cannot_checkpoint_is_refused_and_left_alone() -> None:
    with pytest.raises(UserError, match="train.grad_checkpointing"):
        TrainMode(nn.Linear(2, 2), make_run(grad_checkpointing=True), "cpu").__enter__()


def test_a_copy_in_channels_last_is_plain_for_a_while() -> None:
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    strides = net.weight.stride()
    with contiguous(net, was_channels_last=True):
        assert net.weight.is_contiguous()
    assert net.weight.stride() == strides


@pytest.mark.gpu
def test_tf32_is_for_training_alone() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    with TrainMode(_net(), make_run(model=RESNET, tf32=True), "cuda"):
        assert matmul.allow_tf32
    assert matmul.allow_tf32 == before


@pytest.mark.slow
def test_a_compiled_network_is_compiled_in_training_alone() -> None:
    net = _net()
    inputs = torch.randn(2, 3, 32, 32)
    with TrainMode(net, make_run(model=RESNET, compile=True), "cpu") as mode:
        mode.begin(ALL)
        eager = copy.deepcopy(net)  # of a compiled network, the copy is not
        assert net._compiled_call_impl is not None and eager._compiled_call_impl is None
        assert torch.allclose(net(inputs), eager(inputs), atol=1e-4)
        assert net.state_dict().keys() == eager.state_dict().keys()
        with mode.paused():
            assert net._compiled_call_impl is None
    assert net._compiled_call_impl is None
