"""Optimizers and moving averages: timm's, with parameter groups made here.

parameters x {decay, no decay} x {layers of the body, head} -> optimizer
weights after each step -> their exponential moving average
"""

import fnmatch
from typing import Any

from timm.models import group_parameters
from timm.optim import (
    auto_group_layers,
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
)
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from workers.config.train import TrainConfig
from workers.errors import UserError, similar_names

LOOKAHEAD = "lookahead_"
"""timm's prefix for any optimizer with Lookahead around it (Zhang et al. 2019)."""

ParameterGroup = dict[str, Any]


def require_optimizer(name: str) -> None:
    """Raises UserError with the nearest names if timm has no optimizer `name`, or one that needs
    gradients of gradients, which training does not compute."""
    names = [name for name in list_optimizers() if not get_optimizer_info(name).second_order]
    if name.lower().removeprefix(LOOKAHEAD) in names:
        return
    near = similar_names(name, names) or ["adamw", "sgd"]
    raise UserError(
        f"train.opt: timm has no first-order optimizer {name!r}; nearest: {', '.join(near)}"
    )


def create_optimizer(model: nn.Module, spec: TrainConfig, head: set[str]) -> Optimizer:
    """timm's optimizer over the parameters of `model` that require gradients.

    `head` are the names of the classifier's parameters, whose rate is `head_lr`.
    """
    require_optimizer(spec.opt)
    groups = parameter_groups(model, spec, head)
    named = dict(model.named_parameters())
    for group in groups:
        group["params"] = [named[name] for name in group.pop("names")]
    try:
        optimizer: Optimizer = create_optimizer_v2(
            groups, spec.opt, lr=spec.lr, weight_decay=spec.weight_decay, momentum=spec.momentum
        )
    except (AssertionError, ImportError) as error:  # timm's way of asking for CUDA, apex, ...
        raise UserError(f"train.opt: {spec.opt} cannot be used here: {error}") from error
    return optimizer


def parameter_groups(model: nn.Module, spec: TrainConfig, head: set[str]) -> list[ParameterGroup]:
    """Groups `{names, weight_decay, lr_scale}`; every trained parameter is in exactly one.

    Vectors, biases and parameters that the model exempts do not decay, as in timm. With
    `layer_decay` the rate falls from each group of layers to the one below (BEiT, Bao et al.,
    2022). `head_lr` is the classifier's rate whatever its layer.
    """
    layers = layer_of(model) if spec.layer_decay is not None else {}
    top = max(layers.values(), default=0)
    members: dict[tuple[int, bool, bool], list[str]] = {}
    for name in trained_parameters(model):
        key = (layers.get(name, top), name in head, _decays(model, name))
        members.setdefault(key, []).append(name)
    return [
        {
            "names": names,
            "weight_decay": spec.weight_decay if decays else 0.0,
            "lr_scale": _scale(spec, top - layer, in_head),
        }
        for (layer, in_head, decays), names in sorted(members.items())
    ]


def layer_of(model: nn.Module) -> dict[str, int]:
    """Parameter name -> number of its group of layers as timm counts them, 0 next to the image."""
    matcher: Any = getattr(model, "group_matcher", None)
    groups: dict[str, int] = (
        group_parameters(model, matcher(coarse=False), reverse=True)
        if matcher is not None
        else auto_group_layers(model)
    )
    return groups


def _scale(spec: TrainConfig, below_top: int, in_head: bool) -> float:
    if in_head and spec.head_lr is not None:
        return spec.head_lr / spec.lr
    return float((spec.layer_decay or 1.0) ** below_top)


def trained_parameters(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order by which its state dict counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def body_lr(optimizer: Optimizer) -> float:
    """The learning rate before `head_lr` or `layer_decay` scale it."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group.get("lr_scale", 1.0))


def create_average(net: nn.Module, spec: TrainConfig) -> ModelEmaV3 | None:
    """The exponential moving average of the network's weights and statistics. None: not asked for.

    It starts equal to the network; `update(net, step)` is for after each step, counted from 1.
    """
    if spec.model_ema_decay is None:
        return None
    return ModelEmaV3(net, decay=spec.model_ema_decay, use_warmup=spec.model_ema_warmup)


def _decays(model: nn.Module, name: str) -> bool:
    exemptions: Any = getattr(model, "no_weight_decay", set)
    exempt = any(fnmatch.fnmatch(name, pattern) for pattern in exemptions())
    is_vector = model.get_parameter(name).ndim <= 1 or name.endswith(".bias")
    return not is_vector and not exempt
