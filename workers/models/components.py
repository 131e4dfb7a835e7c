"""Components: the groups of layers of a network, in the order of execution.

    ViT        cls_token, pos_embed, patch_embed, blocks.0, blocks.1, ..., norm, head
    ResNet     conv1, bn1, layer1.0, layer1.1, ..., fc
    wrapper    backbone.patch_embed, backbone.blocks.0, ..., head.fc

They come from the module tree and one forward pass, so every architecture has them.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from workers.models.training_flags import keep_training_flags

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose children are the groups, one level deep."""

WRAPPER_SHARE = 0.5
"""Share of all parameters. A module with more is a wrapper, and its children are groups."""


def components_of(model: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    """Dotted prefixes of tensor names, one for every parameter that a forward pass uses.

    `inputs`: float32 (N, 3, H, W). The model's own parameters come first. The model keeps its mode.
    """
    calls = _call_order(model, inputs)
    total = sum(parameter.numel() for parameter in model.parameters())
    own, first_call = [], {}
    for prefix, is_parameter in _groups(model, "", total):
        if is_parameter:
            own.append(prefix)
            continue
        inside = [call for name, call in calls.items() if f"{name}.".startswith(f"{prefix}.")]
        if inside:
            first_call[prefix] = min(inside)
    return (*own, *sorted(first_call, key=first_call.__getitem__))


def _call_order(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Place of the first call of every module, by name."""
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls.setdefault(name, len(calls))

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        with keep_training_flags(model), torch.inference_mode():
            model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _groups(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, bool]]:
    """(prefix, whether it is one parameter) of all groups in a module."""
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, True
    for name, child in _learning_children(module):
        inner = _learning_children(child)
        if type(child) in CONTAINERS and len(inner) > 1:
            yield from ((f"{prefix}{name}.{child_name}", False) for child_name, _ in inner)
        elif len(inner) > 1 and _size(child) > WRAPPER_SHARE * total:
            yield from _groups(child, f"{prefix}{name}.", total)
        else:
            yield prefix + name, False


def _learning_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if _size(child)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
