"""Unfreeze phases: their epochs and modules, and features that a model lacks."""

import pytest
import timm
from torch import nn

from tests.workers.small_runs import RESNET, make_run
from workers.config.train import TrainConfig
from workers.errors import UserError
from workers.training.unfreezing import (
    UnfreezePhase,
    phase_at,
    phases,
    require_model_features,
    trainable_names,
)

GRADUAL = ({"epoch": 0, "modules": "head"}, {"epoch": 2, "modules": ["layer4", "layer3.0"]})


def _resnet() -> nn.Module:
    net: nn.Module = timm.create_model("test_resnet", num_classes=3)
    return net


def _spec(**options: object) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 5, **options})


def test_phases_cover_the_epochs_and_are_cumulative() -> None:
    run = make_run(model=RESNET, epochs=5, unfreeze=GRADUAL)
    first, second = phases(run)
    assert first == UnfreezePhase(0, 2, ("head",)) and first.num_epochs == 2
    assert second == UnfreezePhase(2, 5, ("head", "layer4", "layer3.0"))
    assert [phase_at(run, epoch) for epoch in (0, 1, 2, 4, 5)] == [first] * 2 + [second] * 3


def test_without_unfreezing_all_modules_are_trained_and_of_a_probe_the_head() -> None:
    assert phases(make_run(epochs=2)) == [UnfreezePhase(0, 2, ("all",))]
    probe = make_run(epochs=2).model_copy(update={"role": "probe"})
    assert phases(probe) == [UnfreezePhase(0, 2, ("head",))]


def test_a_module_is_named_by_itself_and_never_by_half_its_name() -> None:
    net = _resnet()
    assert trainable_names(net, ("head",)) == {"fc.weight", "fc.bias"}
    assert trainable_names(net, ("all",)) == {name for name, _ in net.named_parameters()}
    assert trainable_names(net, ("layer4",)) == {
        n for n in trainable_names(net, ("all",)) if "layer4." in n
    }
    assert trainable_names(net, ("layer",)) == set()


def test_an_unknown_module_is_refused_with_the_nearest_names() -> None:
    require_model_features(_resnet(), _spec(unfreeze=GRADUAL))
    with pytest.raises(UserError, match=r"train\.unfreeze: .* no module 'layr4' .*nearest: layer4"):
        require_model_features(_resnet(), _spec(unfreeze=[{"epoch": 0, "modules": "layr4"}]))


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="no module 'global_pool' with anything to learn"):
        require_model_features(_resnet(), _spec(unfreeze=[{"epoch": 0, "modules": "global_pool"}]))


def test_layer_decay_over_no_layers_is_refused() -> None:
    require_model_features(_resnet(), _spec(layer_decay=0.8))
    with pytest.raises(UserError, match=r"train\.layer_decay 0\.8: timm knows no layers"):
        require_model_features(nn.Linear(2, 2), _spec(layer_decay=0.8))


def test_checkpointing_of_a_model_without_it_is_refused() -> None:
    require_model_features(_resnet(), _spec(grad_checkpointing=True))
    with pytest.raises(UserError, match="train.grad_checkpointing: Linear has none"):
        require_model_features(nn.Linear(2, 2), _spec(grad_checkpointing=True))
    without = timm.create_model("test_mambaout", num_classes=3)
    without.set_grad_checkpointing = lambda enable=True: (_ for _ in ()).throw(AssertionError())
    with pytest.raises(UserError, match="train.grad_checkpointing"):
        require_model_features(without, _spec(grad_checkpointing=True))
