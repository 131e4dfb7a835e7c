"""Heads: what stands between the last feature map and the logits, and may be chosen.

    features --squeeze-and-excitation--> timm's pooling --> classifier       model.head: se
    features --multi-head attention pooling--> classifier                    model.head: attention

The pooling module of a timm network is exchanged where it stands, so all other tensors keep their
names and load from the backbone's own files. Importing this file registers the entrypoints
`soupfleet_se` and `soupfleet_attention`, with which timm rebuilds such a network.
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
"""Whose last features are a row of tokens, and which timm itself can pool by attention."""
TOKEN_MODULES = {
    f"timm.models.{name}"
    for name in ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")
}
"""Where timm registers them."""
HEAD_WIDTH = 64
"""Channels per attention head, as in most vision transformers, where the width allows it."""

StateDict = dict[str, Tensor]


def timm_entrypoint(spec: ModelConfig) -> tuple[str, dict[str, Any]]:
    """(timm's name for the network that `spec` describes, the arguments its head adds).

    Token networks pool by attention with timm's own option, which plain timm rebuilds.
    """
    if spec.head == "linear":
        return spec.name, {}
    if spec.head == "attention" and _module_of(spec.name) in TOKEN_MODULES:
        return spec.name, {"global_pool": "map"}
    return f"soupfleet_{spec.head}", {"backbone": spec.name}


def mark_head(model: nn.Module, spec: ModelConfig) -> None:
    """Let `in_head` know the pooling that is timm's own; entrypoints of ours mark theirs.

    Raises UserError where timm took the option for attention pooling, but has none.
    """
    if spec.head == "attention" and type(model) in TOKEN_NETWORKS:
        _mark(model, "attn_pool")
    if spec.head != "linear" and not getattr(model, "soupfleet_head", ()):
        raise _no_place(spec.head, spec.name)


def in_head(model: nn.Module, name: str) -> bool:
    """Whether the tensor `name` belongs to the head: the classifier, or a pooling that learns and
    that `model.head` asked for."""
    marked: tuple[str, ...] = getattr(model, "soupfleet_head", ())
    return in_classifier(model, name) or _is_inside(name, marked)


def in_classifier(model: nn.Module, name: str) -> bool:
    classifier: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    return _is_inside(
        name, (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    )


def weight_filter(name: str) -> Callable[[StateDict, nn.Module], StateDict] | None:
    """timm's own filter of an architecture's checkpoints, which renames old keys and resamples
    position and patch embeddings; many architectures need none."""
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
    """timm's pooling, of channels weighed by squeeze-and-excitation. (B, C, H, W) or channels
    last -> what `pool` gives."""

    def __init__(self, channels: int, pool: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.se = SqueezeExciteCl(channels) if channels_last else SEModule(channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.se(x))
        return pooled


class ExcitedTokens(nn.Module):
    """The same for tokens (B, N, C) -> (B, C): all tokens share one weight per channel."""

    def __init__(self, channels: int, pool_type: str, num_prefix: int, with_prefix: bool) -> None:
        super().__init__()
        self.se = SqueezeExciteCl(channels)
        self.pool_type, self.num_prefix, self.with_prefix = pool_type, num_prefix, with_prefix

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(x.unsqueeze(1)).squeeze(1)
        pooled: Tensor = global_pool_nlc(x, self.pool_type, self.num_prefix, self.with_prefix)
        return pooled


class AttentionPool(nn.Module):
    """One learned query looks at every position, (B, C, H, W) or channels last -> (B, C), or
    (B, C, 1, 1) unless `flatten`; of any input size, since positions have no names.

    The classifier behind it does the work of the output projection.
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
    """Build the backbone, exchange its pooling, load what belongs to the whole.

    `pretrained` with a configuration, as of a folder, means weights of all of it; without one, or
    with a mere tag, weights that timm publishes for the backbone.
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
    """Returns the name of the new module, which is head."""
    if type(model) in TOKEN_NETWORKS and model.attn_pool is None:
        return _excite_tokens(model)
    path, channels, pool, channels_last = _pooling(model, "se", backbone)
    model.set_submodule(path, ExcitedPool(channels, pool, channels_last))
    return f"{path}.se"


def _excite_tokens(model: nn.Module) -> str:
    """timm hands the tokens to `attn_pool` where there is one, and pools by itself elsewhere."""
    vit: Any = model
    with_prefix = getattr(vit, "pool_include_prefix", False)
    vit.attn_pool = ExcitedTokens(
        vit.num_features, vit.global_pool, vit.num_prefix_tokens, with_prefix
    )
    vit.pool_include_prefix = True  # so that timm hands over the class token too
    return "attn_pool"


def _attend(model: nn.Module, backbone: str) -> str:
    path, channels, pool, channels_last = _pooling(model, "attention", backbone)
    pooled = pool(torch.zeros(1, channels, 1, 1).movedim(1, -1 if channels_last else 1))
    model.set_submodule(path, AttentionPool(channels, pooled.ndim == 2, channels_last))
    return path


def _pooling(model: nn.Module, head: str, backbone: str) -> tuple[str, int, nn.Module, bool]:
    """(path, channels in, pooling module, whether channels come last) of a network whose last
    features are a map that one of timm's modules pools. Raises UserError for others."""
    for prefix, owner in (("", model), ("head.", getattr(model, "head", None))):
        pool = getattr(owner, "global_pool", None)
        if isinstance(pool, SelectAdaptivePool2d) and not pool.is_identity():
            channels = getattr(owner, "in_features" if prefix else "num_features")
            channels_last = getattr(owner, "input_fmt", "NCHW") == "NHWC"
            return f"{prefix}global_pool", channels, pool, channels_last
    raise _no_place(head, backbone)


def _no_place(head: str, backbone: str) -> UserError:
    return UserError(
        f"model.head: {head} has no place in {backbone}, which pools in a way of its own; use "
        "head: linear, or another model.name"
    )


def _mark(model: nn.Module, *modules: str) -> None:
    model.soupfleet_head = modules  # type: ignore[assignment]


def _module_of(name: str) -> str:
    module: str = timm.models.model_entrypoint(name.partition(".")[0]).__module__
    return module


def _is_inside(name: str, modules: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))
