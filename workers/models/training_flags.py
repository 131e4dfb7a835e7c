"""Training flags: train or eval mode, module by module."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def keep_training_flags(model: nn.Module) -> Iterator[None]:
    """Restore the flag of every module on exit; frozen BatchNorm differs from the rest."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
