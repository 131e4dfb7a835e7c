"""Heads: the layers between the last feature map and the logits, chosen by `model.head`.

    features --squeeze-and-excitation--> timm's pooling --> classifier       model.head: se
    features --multi-head attention pooling--> classifier                    model.head: attention

The pooling module of a timm network is replaced in place, so all other tensors keep their names and
load from files of the backbone. Importing this file registers the entrypoints `soupfleet_se` and
`soupfleet_attention`, with which timm rebuilds such a network.
"""

import sys
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers import AttentionPoolLatent, SelectAdaptivePool2d, SEModule
from timm.layers.squeeze_excite import SqueezeExciteCl
from timm.models import load_pretrained, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, global_pool_nlc
from torch import Tensor, nn

from workers.config.model import ModelConfig
from workers.errors import UserError

TOKEN_NETWORKS = (VisionTransformer, Eva)
"""Networks whose last features are tokens, which timm itself can pool by attention."""
TOKEN_MODULES = {
    f"timm.models.{name}"
    for name in ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")
}
"""Modules in which timm registers them."""
HEAD_WIDTH = 64
"""Channels per attention head, as in most vision transformers, if the width allows it."""

HeadTensors = dict[str, Tensor]


def timm_entrypoint(spec: ModelConfig) -> tuple[str, dict[str, Any]]:
    """(timm's name of the network, the arguments that its head adds).

    Token networks use timm's own option for attention pooling, so plain timm rebuilds them.
    """
    if spec.head == "linear":
        return spec.name, {}
    if spec.head == "attention" and _module_of(spec.name) in TOKEN_MODULES:
        return spec.name, {"global_pool": "map"}
    return f"soupfleet_{spec.head}", {"backbone": spec.name}


def mark_head(model: nn.Module, spec: ModelConfig) -> None:
    """Mark timm's own attention pooling for `in_head`. Entrypoints of this file mark theirs.

    Raises UserError if timm accepted the option for attention pooling, but has no such pooling.
    """
    if spec.head == "attention" and type(model) in TOKEN_NETWORKS:
        _mark(model, "attn_pool")
    if spec.head != "linear" and not getattr(model, "soupfleet_head", ()):
        raise _no_place(spec.head, spec.name)


def in_head(model: nn.Module, name: str) -> bool:
    """Whether the tensor `name` belongs to the classifier or to a pooling added by `model.head`."""
    marked: tuple[str, ...] = getattr(model, "soupfleet_head", ())
    return in_classifier(model, name) or _is_inside(name, marked)


def in_classifier(model: nn.Module, name: str) -> bool:
    """Whether the tensor `name` belongs to a classifier."""
    classifier: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    return _is_inside(
        name, (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    )


def weight_filter(name: str) -> Callable[[HeadTensors, nn.Module], HeadTensors] | None:
    """timm's filter of an architecture's checkpoints. None: the architecture needs no filter.

    A filter renames old keys and resamples position and patch embeddings.
    """
    return getattr(sys.modules[_module_of(name)], "checkpoint_filter_fn", None)


@register_model
def soupfleet_se(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Squeeze-and-excitation (Hu et al., 2018) of `backbone`'s last features, before its pooling.
    All other arguments are the backbone's."""
    return _headed("se", _excite, pretrained, **kwargs)


@register_model
def soupfleet_attention(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """`backbone` with multi-head attention pooling (Lee et al., 2019) in place of its own.
    All other arguments are the backbone's."""
    return _headed("attention", _attend, pretrained, **kwargs)


class ExcitedPool(nn.Module):
    """Squeeze-and-excitation before timm's pooling: (B, C, H, W) or channels last -> as `pool`."""

    def __init__(self, channels: int, pool: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.se = SqueezeExciteCl(channels) if channels_last else SEModule(channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.se(x))
        return pooled


class ExcitedTokens(nn.Module):
    """Squeeze-and-excitation of tokens, (B, N, C) -> (B, C). All tokens share channel weights."""

    def __init__(self, channels: int, pool_type: str, num_prefix: int, with_prefix: bool) -> None:
        super().__init__()
        self.se = SqueezeExciteCl(channels)
        self.pool_type, self.num_prefix, self.with_prefix = pool_type, num_prefix, with_prefix

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(x.unsqueeze(1)).squeeze(1)
        pooled: Tensor = global_pool_nlc(x, self.pool_type, self.num_prefix, self.with_prefix)
        return pooled


class AttentionPool(nn.Module):
    """Attention of one learned query to all positions: (B, C, H, W) or channels last -> (B, C).

    Without `flatten` the result is (B, C, 1, 1). There are no position embeddings, so inputs may
    have any size, and no output projection, because the classifier follows.
    """

    def __init__(self, channels: int, flatten: bool, channels_last: bool) -> None:
        super().__init__()
        most = max(1, channels // HEAD_WIDTH)
        heads = next(n for n in range(most, 0, -1) if channels % n == 0)
        self.attention = AttentionPoolLatent(channels, out_features=0, num_heads=heads)
        self.flatten, self.channels_last = flatten, channels_last

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2) if self.channels_last else x.flatten(2).transpose(1, 2)
        pooled: Tensor = self.attention(tokens)
        if self.flatten:
            return pooled
        return pooled[:, None, None] if self.channels_last else pooled[:, :, None, None]


def _headed(
    head: str,
    exchange: Callable[[nn.Module, str], str],
    pretrained: bool,
    backbone: str,
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """The backbone with another pooling, and its weights.

    `pretrained` with a configuration, as of a folder, means weights of the whole network. Without
    one, or with only a tag, it means the weights that timm publishes for the backbone.
    """
    whole = pretrained and bool(pretrained_cfg) and not isinstance(pretrained_cfg, str)
    model: nn.Module = timm.create_model(
        backbone, pretrained=pretrained and not whole, pretrained_cfg=pretrained_cfg, **kwargs
    )
    _mark(model, exchange(model, backbone))
    config: dict[str, Any] = {**model.pretrained_cfg, "architecture": f"soupfleet_{head}"}  # type: ignore[dict-item]
    model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]
    if whole:
        classes: Any = model.num_classes
        load_pretrained(model, config, num_classes=classes, filter_fn=weight_filter(backbone))
    return model


def _excite(model: nn.Module, backbone: str) -> str:
    """Add squeeze-and-excitation; return the name of the new module."""
    if type(model) in TOKEN_NETWORKS and model.attn_pool is None:
        return _excite_tokens(model)
    path, channels, pool, channels_last = _pooling(model, "se", backbone)
    model.set_submodule(path, ExcitedPool(channels, pool, channels_last))
    return f"{path}.se"


def _excite_tokens(model: nn.Module) -> str:
    """Add squeeze-and-excitation of tokens as `attn_pool`, which timm then calls to pool."""
    vit: Any = model
    with_prefix = getattr(vit, "pool_include_prefix", False)
    vit.attn_pool = ExcitedTokens(
        vit.num_features, vit.global_pool, vit.num_prefix_tokens, with_prefix
    )
    vit.pool_include_prefix = True  # timm then passes the class token too
    return "attn_pool"


def _attend(model: nn.Module, backbone: str) -> str:
    """Replace the pooling by attention; return the name of the new module."""
    path, channels, pool, channels_last = _pooling(model, "attention", backbone)
    pooled = pool(torch.zeros(1, channels, 1, 1).movedim(1, -1 if channels_last else 1))
    model.set_submodule(path, AttentionPool(channels, pooled.ndim == 2, channels_last))
    return path


def _pooling(model: nn.Module, head: str, backbone: str) -> tuple[str, int, nn.Module, bool]:
    """(path, input channels, pooling module, whether channels come last) of a network.

    Raises UserError for a network whose last features are not a map that a module of timm pools.
    """
    for prefix, owner in (("", model), ("head.", getattr(model, "head", None))):
        pool = getattr(owner, "global_pool", None)
        if isinstance(pool, SelectAdaptivePool2d) and not pool.is_identity():
            channels = getattr(owner, "in_features" if prefix else "num_features")
            channels_last = getattr(owner, "input_fmt", "NCHW") == "NHWC"
            return f"{prefix}global_pool", channels, pool, channels_last
    raise _no_place(head, backbone)


def _no_place(head: str, backbone: str) -> UserError:
    return UserError(
        f"model.head: {head} has no place in {backbone}, which has no pooling module of timm; "
        "use head: linear, or another model.name"
    )


def _mark(model: nn.Module, *modules: str) -> None:
    model.soupfleet_head = modules  # type: ignore[assignment]


def _module_of(name: str) -> str:
    module: str = timm.models.model_entrypoint(name.partition(".")[0]).__module__
    return module


def _is_inside(name: str, modules: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))
