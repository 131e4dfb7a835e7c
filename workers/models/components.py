"""Components: the groups of layers that a network executes, in the order it executes them.

    ViT        cls_token, pos_embed, patch_embed, blocks.0, blocks.1, ..., norm, head
    ResNet     conv1, bn1, layer1.0, layer1.1, ..., fc
    wrapper    backbone.patch_embed, backbone.blocks.0, ..., head.fc

Learned from the module tree and one forward pass, so that any architecture has them.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Groups without a meaning of their own: what they hold counts, one level deep."""

WRAPPER_SHARE = 0.5
"""Of all parameters: a module with more is a wrapper around the network, and is looked into."""


def components_of(model: nn.Module, inputs: Tensor) -> tuple[str, ...]:
    """Dotted prefixes of tensor names. Every parameter lies below exactly one of them, but those
    of modules that the forward pass never calls, which lie below none.

    `inputs` float32 (N, 3, H, W). Parameters that are the model's own come first. The model is
    left in the mode it was in.
    """
    turns = _call_order(model, inputs)
    total = sum(parameter.numel() for parameter in model.parameters())
    own, first_turn = [], {}
    for prefix, is_parameter in _groups(model, "", total):
        if is_parameter:
            own.append(prefix)
            continue
        below = [turn for name, turn in turns.items() if f"{name}.".startswith(f"{prefix}.")]
        if below:
            first_turn[prefix] = min(below)
    return (*own, *sorted(first_turn, key=first_turn.__getitem__))


def _call_order(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """When each module was called first, by name."""
    turns: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            turns.setdefault(name, len(turns))

        return hook

    modes = [(module, module.training) for module in model.modules()]
    hooks = [each.register_forward_pre_hook(note(name)) for name, each in model.named_modules()]
    try:
        with torch.inference_mode():
            model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return turns


def _groups(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, bool]]:
    """(prefix, whether it is one parameter) of all groups below a module."""
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, True
    for name, child in _learning_children(module):
        inner = _learning_children(child)
        if type(child) in CONTAINERS and len(inner) > 1:
            yield from ((f"{prefix}{name}.{each}", False) for each, _ in inner)
        elif len(inner) > 1 and _size(child) > WRAPPER_SHARE * total:
            yield from _groups(child, f"{prefix}{name}.", total)
        else:
            yield prefix + name, False


def _learning_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if _size(child)]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
