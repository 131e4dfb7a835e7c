"""Optimizer state captured and restored, as tensors and JSON."""

import json

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from workers.config.train import TrainConfig
from workers.storage.checkpoints import TrainState
from workers.training.optim import create_optimizer
from workers.training.train_state import TrainPosition, capture, restore_average, restore_optimizer

UNUSABLE = ("bnb", "fused", "adahessian")
"""They need a device, or gradients of gradients."""
NAMES = [name for name in list_optimizers() if not name.startswith(UNUSABLE)]
COMMON = ["sgd", "momentum", "adamw", "nadamw", "lamb", "lion", "adafactor", "adafactorbv", "muon"]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def _learn(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def _stored(state: TrainState) -> TrainState:
    return TrainState(
        {name: tensor.clone() for name, tensor in state.tensors.items()},
        json.loads(json.dumps(state.scalars)),
    )


@pytest.mark.filterwarnings("ignore:It is highly recommended")
@pytest.mark.parametrize(
    "opt",
    [pytest.param(name, marks=[] if name in COMMON else [pytest.mark.slow]) for name in NAMES]
    + ["lookahead_adam"],
)
def test_every_optimizer_of_timm_continues_as_if_not_stopped(opt: str) -> None:
    spec = TrainConfig(opt=opt, lr=1e-2)
    whole = _net()
    _learn(whole, create_optimizer(whole, spec, {"3.weight"}), range(14))

    before, after = _net(), _net()
    optimizer = create_optimizer(before, spec, {"3.weight"})
    _learn(before, optimizer, range(7))
    state = _stored(capture(before, optimizer, TrainPosition(7, 1.5, 28), scaler=None))
    after.load_state_dict(before.state_dict())
    fresh = create_optimizer(after, spec, {"3.weight"})
    assert restore_optimizer(state, after, fresh) == TrainPosition(7, 1.5, 28)
    _learn(after, fresh, range(7, 14))

    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name


def test_state_is_kept_by_the_name_of_the_parameter() -> None:
    net = _net()
    optimizer = create_optimizer(net, TrainConfig(opt="adamw"), set())
    _learn(net, optimizer, range(1))
    state = capture(net, optimizer, TrainPosition(1))
    assert {name.partition(":")[0] for name in state.tensors} == {
        name for name, _ in net.named_parameters()
    }


def test_a_state_that_json_cannot_hold_is_refused_by_name() -> None:
    net = _net()
    optimizer = create_optimizer(net, TrainConfig(opt="sgd"), set())
    optimizer.state[net[0].weight]["odd"] = object()  # type: ignore[index]
    with pytest.raises(TypeError, match="optimizer state 0.weight:odd is a object"):
        capture(net, optimizer, TrainPosition(0))


def test_a_moving_average_is_restored_and_is_not_part_of_the_optimizer() -> None:
    net, averaged, empty = _net(), _net(), _net()
    optimizer = create_optimizer(net, TrainConfig(), set())
    _learn(net, optimizer, range(2))
    with torch.no_grad():
        averaged[0].weight += 1
    state = _stored(capture(net, optimizer, TrainPosition(2, history=[0.25, 0.5]), averaged))
    fresh = create_optimizer(net, TrainConfig(), set())
    assert restore_optimizer(state, net, fresh).history == [0.25, 0.5]
    restore_average(state, empty)
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(tensor, empty.state_dict()[name])


def test_restored_state_has_the_same_strides() -> None:
    """With other strides numbers are added in another order."""
    net, again = (_net().to(memory_format=torch.channels_last) for _ in range(2))
    optimizer = create_optimizer(net, TrainConfig(), set())
    _learn(net, optimizer, range(1))
    state = _stored(capture(net, optimizer, TrainPosition(1)))
    state.tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    fresh = create_optimizer(again, TrainConfig(), set())
    restore_optimizer(state, again, fresh)
    moments = [o.state[n[0].weight]["exp_avg"] for o, n in ((optimizer, net), (fresh, again))]
    assert moments[0].stride() == moments[1].stride() != moments[0].contiguous().stride()


def test_scores_are_those_of_the_last_epochs() -> None:
    position = TrainPosition(9, history=[0.1, 0.2, 0.3])
    assert position.scores(2) == [0.2, 0.3]
    assert position.scores(0) == [] and position.scores(5) == [0.1, 0.2, 0.3]
