"""Training mode of a network (freezing, channels-last, checkpointing, compile), undone on exit.

warm network --enter--> frozen parts, memory format, checkpointing, TF32, compiled
             <--pause-- as evaluation, tastes and other orders expect it
             <--exit--- the same, and requires_grad as before
"""

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.models.training_flags import keep_training_flags
from workers.training.unfreezing import UnfreezePhase, is_below, set_checkpointing, trainable_names
from workers.types import RunSpec

COMPILED_VARIANTS = 64
"""Per network, by batch size and frozen parameters. Beyond its limit of 8 torch silently falls back
to eager kernels, whose bits differ, depending on what a warm worker has done before."""


class TrainMode:
    """The training mode of one run on one network; a context."""

    def __init__(self, net: nn.Module, run: RunSpec, device: str) -> None:
        self.net, self.run, self.spec, self.device = net, run, run.train, device
        self._learnable = [(p, p.requires_grad) for p in net.parameters()]
        self._flags = contextlib.ExitStack()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "TrainMode":
        self._flags.enter_context(keep_training_flags(self.net))
        self._apply()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()
        for parameter, learns in self._learnable:
            parameter.requires_grad_(learns)
        self._flags.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The network as other orders see it, so that scores are the same everywhere."""
        self._undo.close()
        try:
            yield
        finally:
            self._apply()

    def begin(self, phase: UnfreezePhase) -> None:
        """Train only the modules of a phase. Probes and frozen BatchNorm stay in eval mode."""
        names = trainable_names(self.net, phase.modules)
        flags = zip(self.net.named_parameters(), self._learnable, strict=True)
        for (name, parameter), (_, learns) in flags:
            parameter.requires_grad_(learns and name in names)
        self.net.train(self.run.role != "probe")
        for name, module in self.net.named_modules():
            if isinstance(module, _BatchNorm) and self._is_frozen(name, module, phase):
                module.eval()

    def _is_frozen(self, name: str, norm: _BatchNorm, phase: UnfreezePhase) -> bool:
        own = list(norm.parameters(recurse=False))
        learns = any(p.requires_grad for p in own) if own else is_below(phase.modules, name)
        return self.spec.bn_freeze or not learns

    def _apply(self) -> None:
        undo, spec = self._undo, self.spec
        if spec.grad_checkpointing:
            set_checkpointing(self.net, True)
            undo.callback(set_checkpointing, self.net, False)
        if spec.channels_last:
            undo.enter_context(_channels_last(self.net))
        if self.device == "cuda":
            undo.enter_context(_tf32(spec.tf32))
        if spec.compile:
            undo.enter_context(_compiled(self.net))


@contextlib.contextmanager
def _channels_last(net: nn.Module) -> Iterator[None]:
    """Channels-last; on exit the memory format is that of a fresh network, and so are the bits."""
    net.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        net.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def contiguous(net: nn.Module, was_channels_last: bool) -> Iterator[None]:
    """Contiguous memory for a network that is in channels-last; undone on exit."""
    if not was_channels_last:
        yield
        return
    net.to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        net.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def _compiled(net: nn.Module) -> Iterator[None]:
    """Compile in place, so that names stay; torch caches what it compiles for this network. Every
    batch size has kernels of its own, so that a step's kernels do not depend on earlier steps."""
    import torch._dynamo

    limits: Any = torch._dynamo.config
    with limits.patch(recompile_limit=COMPILED_VARIANTS):
        net.compile(dynamic=False)
        try:
            yield
        finally:
            net._compiled_call_impl = None
