"""BatchNorm statistics of a mix, whose activations differ from those of its members.

    recompute  forward training images, preprocessed as for evaluation, through the mixed weights
    average    blend the members' statistics like any other tensor
    best       take those of the first member, which is the best single model
    frozen     take those of any member: training never changed them
    none       the network has no BatchNorm

A mix of one checkpoint is that checkpoint; nothing here is applied to it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.data import normalise
from workers.models.training_flags import keep_training_flags

BATCH = 64
"""Images per batch of `recompute`. A constant, because the statistics depend on it."""


def recompute(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Mapping[str, Any],
    device: str,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Replace all running statistics by the mean over batches of `pixels`, uint8 (N, 3, H, W).

    Every batch counts the same, as in `torch.optim.swa_utils.update_bn`. A last batch of a single
    image is dropped, since it has no variance. Only BatchNorm modules are in train mode, not
    dropout and stochastic depth; all training flags are restored.
    """
    with _only_batchnorm_trains(model), torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            batch = pixels[start : start + BATCH].to(device)
            if len(batch) > 1:
                model(normalise(batch, dict(preprocessing)))
            on_batch()


def restore_statistics(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the running statistics of one checkpoint into the model."""
    own = model.state_dict()
    with torch.no_grad():
        for key in statistics(model):
            own[key].copy_(weights[key])


def repair(model: nn.Module) -> None:
    """Raise variances below zero to zero; a blend with negative weights may contain some."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            module.running_var.clamp_(min=0)


def statistics(model: nn.Module) -> list[str]:
    """State-dict keys of all running means, variances and counters."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for buffer, _ in module.named_buffers(recurse=False)
    ]


@contextmanager
def _only_batchnorm_trains(model: nn.Module) -> Iterator[None]:
    """Eval mode, except BatchNorm modules, which are reset and average cumulatively."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [(norm, norm.momentum) for norm in norms]
    with keep_training_flags(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            yield
        finally:
            for norm, momentum in momenta:
                norm.momentum = momentum
