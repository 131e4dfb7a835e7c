"""Components: what a forward pass executes, from the module tree of any architecture."""

import pytest
import timm
import torch
from torch import Tensor, nn

from workers.models.components import components_of
from workers.types import component_of

NAMES = [
    "test_vit",
    "test_vit2",
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_byobnet",
]


def components(model: nn.Module, size: int = 32) -> tuple[str, ...]:
    return components_of(model, torch.zeros(2, 3, size, size))


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 32) for name in NAMES), ("mobilenetv2_035", 32), ("densenet121", 32), ("vgg11", 32)],
)
def test_every_parameter_lies_in_exactly_one_component(name: str, size: int) -> None:
    kwargs = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **kwargs)
    found = components(model, size)
    assert len(set(found)) == len(found) > 4
    own = [component_of(key, found) for key, _ in model.named_parameters()]
    assert set(own) == set(found)
    for one in found:
        assert not any(one.startswith(f"{other}.") for other in found)


def test_a_vision_transformer_is_its_tokens_its_blocks_and_its_head() -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    blocks = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    head = ("cls_token", "pos_embed", "patch_embed")
    found = components(model)
    own = tuple(name for name in head if name in found)
    assert found[: len(own)] == own and "pos_embed" in own
    assert found[len(own) :] == (*blocks, "norm", "head")


def test_a_resnet_is_its_stem_its_blocks_and_its_classifier_in_the_order_of_execution() -> None:
    found = components(timm.create_model("resnet18", num_classes=3))
    layers = tuple(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))
    assert found == ("conv1", "bn1", *layers, "fc")


class Wrapper(nn.Module):
    """Executes its parts in another order than it declares them, and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)
        self.idle = nn.Linear(48, 48)
        self.scale = nn.Parameter(torch.ones(()))
        self.backbone = timm.create_model("test_vit", num_classes=0, img_size=32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x)[:, :48]) * self.scale
        return out


def test_a_wrapper_is_looked_into_and_what_is_never_executed_is_no_component() -> None:
    model = Wrapper().train()
    found = components(model)
    assert found[0] == "scale" and found[-1] == "head"
    assert "backbone.blocks.0" in found and "backbone.norm" in found
    assert not any(one.startswith("idle") for one in found)
    assert model.training and model.backbone.training
    assert not model._forward_pre_hooks and not model.head._forward_pre_hooks
