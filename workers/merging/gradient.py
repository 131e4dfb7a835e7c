"""Gradient: how the loss of a mix changes with the weights of its members.

    mix --blend--> warm model --batch--> loss --backward--> dL/dtheta, one model's worth
                                                                |
    dL/dw_i = <dL/dtheta, theta_i> / d, per component      member after member, from its file

No member is ever in memory as a whole: memory is that of two models and the batch. The method is
that of MEHL-Soup (one backward pass through one blended model, projected on the members).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from workers.context import WorkerContext
from workers.data import eval_pixels, normalise
from workers.merging.blend import NamedTensors
from workers.merging.taste import load_mix
from workers.models.build import preprocessing
from workers.models.training_flags import keep_training_flags
from workers.storage.checkpoints import open_weights
from workers.types import (
    SELECTION,
    AnyEvent,
    GradientOrder,
    Measured,
    MixGradient,
    MixGradientResult,
    component_of,
)

PROJECTION_BLOCK = 1 << 17
"""Elements per block of a projection. Part of the result's bits."""


def measure_gradient(
    order: GradientOrder, attempt: int, worker: WorkerContext
) -> Iterator[AnyEvent]:
    """One event: the loss and its gradient by the weights. The warm model keeps no gradients."""
    began, question = time.monotonic(), order.question
    model = worker.model(order.cohort.model)
    blended = order.cohort.model_copy(update={"batchnorm": "average"})
    load_mix(model, question.mix, blended, order.ingredients, worker)
    images, labels = _batch(question, model, worker)
    with _learnable(model):
        loss, temperature = _backward(model, images, labels, question.temperature)
        gradients = {key: tensor for key, tensor in _gradients(model) if tensor is not None}
        rows = _projected(gradients, order, worker)
    yield Measured(
        key=question.key,
        cohort=order.cohort.family,
        answer=MixGradientResult(loss=loss, weights=rows, temperature=temperature),
        samples=len(labels),
        busy_s=time.monotonic() - began,
    )


def batch_of(question: MixGradient, seed: int, count: int) -> np.ndarray:
    """Indices into the selection split: a batch of the epoch's permutation, the last one short.

    Raises ValueError for a batch beyond the split.
    """
    start = question.batch * question.batch_size
    if not 0 <= start < count:
        raise ValueError(
            f"batch {question.batch} of {question.batch_size} begins beyond {count} images"
        )
    order = np.random.default_rng([seed, question.epoch]).permutation(count)
    indices: np.ndarray = order[start : start + question.batch_size]
    return indices


def _batch(question: MixGradient, model: nn.Module, worker: WorkerContext) -> tuple[Tensor, Tensor]:
    config = preprocessing(model, worker.config.data)
    indices = batch_of(question, worker.config.seed, worker.images.count(SELECTION))
    pixels = eval_pixels(worker.images, SELECTION, config, touch=worker.progress.touch)
    images = pixels[torch.from_numpy(indices)].to(worker.config.device)
    labels = torch.from_numpy(worker.images.labels(SELECTION)[indices])
    return normalise(images, config), labels.to(worker.config.device)


@contextmanager
def _learnable(model: nn.Module) -> Iterator[None]:
    """Eval mode, with a gradient for every parameter; on exit as before, without gradients."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with keep_training_flags(model):
        model.eval().requires_grad_(True)
        model.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            for parameter, learns in flags:
                parameter.requires_grad_(learns)


def _backward(
    model: nn.Module, images: Tensor, labels: Tensor, temperature: float
) -> tuple[float, float]:
    """(mean cross-entropy, its derivative by the temperature); parameters get their gradients."""
    with torch.enable_grad():
        scale = torch.tensor(
            temperature, dtype=torch.float64, device=images.device, requires_grad=True
        )
        loss = functional.cross_entropy(model(images).double() * scale, labels)
        loss.backward()
    assert scale.grad is not None
    return loss.item(), scale.grad.item()


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """d loss / d tensor by state-dict key, of parameters and of BatchNorm statistics, which are
    blended as well. Statistics of a BatchNorm without scale and shift count as constants."""
    for name, parameter in model.named_parameters():
        yield name, parameter.grad
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine and module.running_var is not None:
            yield from _statistics_gradients(f"{name}.", module)


def _statistics_gradients(prefix: str, norm: _BatchNorm) -> Iterator[tuple[str, Tensor | None]]:
    """y = (x - mean) * s * weight + bias with s = (var + eps)^(-1/2), so
    dL/dmean = -dL/dbias * weight * s and dL/dvar = -dL/dweight * weight * s^2 / 2."""
    if norm.weight.grad is None or norm.bias.grad is None or norm.running_var is None:
        return
    weight = norm.weight.detach().double()
    inverse = (norm.running_var.double() + norm.eps).rsqrt()
    yield f"{prefix}running_mean", -norm.bias.grad.double() * weight * inverse
    yield f"{prefix}running_var", -norm.weight.grad.double() * weight * inverse.square() / 2


def _projected(
    gradients: Mapping[str, Tensor], order: GradientOrder, worker: WorkerContext
) -> tuple[tuple[float, ...], ...]:
    """A row per component, a column per checkpoint. Tensors of no component are left out."""
    question = order.question
    checkpoints = {checkpoint.name: checkpoint for checkpoint in order.ingredients}
    table = {prefix: [0.0] * len(question.mix.weights) for prefix in question.components}
    with ExitStack() as opened:
        members = [
            opened.enter_context(open_weights(worker.store, checkpoints[name]))
            for name, _ in question.mix.weights
        ]
        for key, gradient in gradients.items():
            component = component_of(key, question.components)
            if component is not None:
                products = _products(gradient.cpu().double().reshape(-1), key, members)
                row = table[component]
                table[component] = [a + b for a, b in zip(row, products, strict=True)]
            worker.progress.touch()
    divisor = question.mix.divisor
    return tuple(tuple(v / divisor for v in table[prefix]) for prefix in question.components)


def _products(gradient: Tensor, key: str, members: Sequence[NamedTensors]) -> list[float]:
    """<gradient, theta_i> of every member, in float64, block by block."""
    flats = [member[key].reshape(-1) for member in members]
    scratch = torch.empty(min(PROJECTION_BLOCK, len(gradient)), dtype=torch.float64)
    products = [0.0] * len(flats)
    for low in range(0, len(gradient), PROJECTION_BLOCK):
        part = gradient[low : low + PROJECTION_BLOCK]
        term = scratch[: len(part)]
        for i, flat in enumerate(flats):
            products[i] += torch.dot(part, term.copy_(flat[low : low + PROJECTION_BLOCK])).item()
    return products
