"""Hybrids: a ResNeXt with a small vision transformer at the end of its last stage.

    stages 1..4 --+--> project down, + position, transformer blocks, project up --+--> pooling
                  +---------------------------------------------------------------+

The last projection starts at zero, so a hybrid first computes the same as the plain ResNeXt, whose
checkpoints it loads. Importing this file registers the entrypoints `soupfleet_resnext50_vit`,
`soupfleet_resnext101_vit` and, for tests, `soupfleet_test_resnet_vit`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.models import DefaultCfg, build_model_with_cfg, named_apply, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnet import default_cfgs as resnet_cfgs
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

VIT = "layer4.vit"
"""Name of the transformer, the last block of the last stage."""


class FeatureTransformer(nn.Module):
    """A residual branch of transformer blocks (Dosovitskiy et al., 2021), (B, C, H, W) -> the same.

    A depthwise convolution encodes positions at any input size (Chu et al., 2021).
    """

    def __init__(
        self, channels: int, width: int, depth: int, num_heads: int, drop_path: float
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, qkv_bias=True, drop_path=drop_path) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.up = nn.Conv2d(width, channels, 1)
        named_apply(lambda module, name: init_weights_vit_timm(module), self.blocks)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.down(x)
        narrow = narrow + self.position(narrow)
        tokens = self.norm(self.blocks(narrow.flatten(2).transpose(1, 2)))
        wide: Tensor = self.up(tokens.transpose(1, 2).reshape(narrow.shape))
        return x + wide


class ResNetViT(ResNet):
    """timm's ResNet with a FeatureTransformer at the end of its last stage.

    All arguments but `vit_*` are timm's.
    """

    soupfleet_fresh = (VIT,)
    """Modules that a checkpoint of the plain network has no weights for."""

    def __init__(
        self,
        *args: Any,
        vit_width: int = 256,
        vit_depth: int = 1,
        vit_heads: int = 4,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, drop_path_rate=drop_path_rate, **kwargs)
        channels: int = self.feature_info[-1]["num_chs"]
        vit = FeatureTransformer(channels, vit_width, vit_depth, vit_heads, drop_path_rate)
        self.layer4.add_module("vit", vit)

    def group_matcher(self, coarse: bool = False) -> Mapping[str, Any]:
        """timm's groups of layers, with the transformer as the last group below the head."""
        matcher: dict[str, Any] = super().group_matcher(coarse)
        if coarse:
            return matcher
        return matcher | {"blocks": [(matcher["blocks"], None), (r"^layer(4)\.vit", (1000,))]}


def _plain_weights(name: str) -> DefaultCfg:
    """timm's weights of the plain network, in folders with its name."""
    plain = resnet_cfgs[name]
    cfgs = {
        tag: replace(cfg, hf_hub_id=f"timm/{name}.{tag}") if cfg.hf_hub_id == "timm/" else cfg
        for tag, cfg in plain.cfgs.items()
    }
    return replace(plain, cfgs=cfgs)


default_cfgs = {
    "soupfleet_resnext50_vit": _plain_weights("resnext50_32x4d"),
    "soupfleet_resnext101_vit": _plain_weights("resnext101_32x8d"),
    "soupfleet_test_resnet_vit": _plain_weights("test_resnet"),
}
"""Read by timm's register_model."""


@register_model
def soupfleet_resnext50_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-50 (32x4d) and a transformer block of 256 channels."""
    layers = {"block": Bottleneck, "layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4}
    return _create("soupfleet_resnext50_vit", pretrained, layers | kwargs)


@register_model
def soupfleet_resnext101_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-101 (32x8d) and a transformer block of 256 channels."""
    layers = {"block": Bottleneck, "layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 8}
    return _create("soupfleet_resnext101_vit", pretrained, layers | kwargs)


@register_model
def soupfleet_test_resnet_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's tiny test_resnet and a transformer block of 32 channels, for tests."""
    layers = {
        "block": [BasicBlock, BasicBlock, Bottleneck, BasicBlock],
        "layers": (1, 1, 1, 1),
        "stem_width": 16,
        "stem_type": "deep",
        "avg_down": True,
        "channels": (32, 48, 48, 96),
        "vit_width": 32,
        "vit_heads": 2,
    }
    return _create("soupfleet_test_resnet_vit", pretrained, layers | kwargs)


def _create(variant: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    config = arguments.get("pretrained_cfg")
    # A folder has all weights; timm publishes only those of the plain network.
    whole = bool(config) and not isinstance(config, str)
    model: nn.Module = build_model_with_cfg(
        ResNetViT, variant, pretrained, pretrained_strict=whole, **arguments
    )
    return model
