"""Components: groups of layers of any architecture, in the order of execution."""

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
def test_every_parameter_belongs_to_exactly_one_component(name: str, size: int) -> None:
    kwargs = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=3, **kwargs)
    prefixes = components(model, size)
    assert len(set(prefixes)) == len(prefixes) > 4
    own = [component_of(key, prefixes) for key, _ in model.named_parameters()]
    assert set(own) == set(prefixes)
    for prefix in prefixes:
        assert not any(prefix.startswith(f"{other}.") for other in prefixes)


def test_a_vision_transformer_is_its_tokens_its_blocks_and_its_head() -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    blocks = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    head = ("cls_token", "pos_embed", "patch_embed")
    prefixes = components(model)
    own = tuple(name for name in head if name in prefixes)
    assert prefixes[: len(own)] == own and "pos_embed" in own
    assert prefixes[len(own) :] == (*blocks, "norm", "head")


def test_a_resnet_is_its_stem_its_blocks_and_its_classifier_in_the_order_of_execution() -> None:
    prefixes = components(timm.create_model("resnet18", num_classes=3))
    layers = tuple(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))
    assert prefixes == ("conv1", "bn1", *layers, "fc")


class Wrapper(nn.Module):
    """A network that executes its parts in another order than declared, and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)
        self.idle = nn.Linear(48, 48)
        self.scale = nn.Parameter(torch.ones(()))
        self.backbone = timm.create_model("test_vit", num_classes=0, img_size=32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x)[:, :48]) * self.scale
        return out


def test_a_wrapper_has_the_components_of_its_parts_without_unused_ones() -> None:
    model = Wrapper().train()
    prefixes = components(model)
    assert prefixes[0] == "scale" and prefixes[-1] == "head"
    assert "backbone.blocks.0" in prefixes and "backbone.norm" in prefixes
    assert not any(prefix.startswith("idle") for prefix in prefixes)
    assert model.training and model.backbone.training
    assert not model._forward_pre_hooks and not model.head._forward_pre_hooks
