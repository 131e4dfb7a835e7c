"""Gram matrices of the ingredients' displacements from the base, tensor by tensor.

    theta_1 - theta_0    |----|----|--|
    theta_2 - theta_0    |----|----|--|     block by block:  G += D D^T, in float64
    theta_3 - theta_0    |----|----|--|

Sources are memory-mapped, so memory is that of a block, whatever their number and size.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from workers.context import WorkerContext
from workers.merging.batchnorm import statistics
from workers.merging.blend import (
    NamedTensors,
    check_same_keys,
    check_same_shapes,
    refuse_not_finite,
)
from workers.storage.checkpoints import open_weights
from workers.types import AnyEvent, GeometryOrder, GramResult, Measured

GRAM_BLOCK = 1 << 20
"""Elements per block of all displacements together: 8 MiB. Part of the result's bits."""


def measure_gram_matrices(
    order: GeometryOrder, attempt: int, worker: WorkerContext
) -> Iterator[AnyEvent]:
    """One event: the Gram matrix of every tensor, BatchNorm statistics left out."""
    began, question = time.monotonic(), order.question
    checkpoints = {checkpoint.name: checkpoint for checkpoint in order.ingredients}
    model = worker.model(order.cohort.model)
    with ExitStack() as opened:
        sources = {
            name: opened.enter_context(open_weights(worker.store, checkpoints[name]))
            for name in dict.fromkeys((*question.names, question.base))
        }
        grams = grams_of(sources, question.names, question.base, statistics(model), worker)
    yield Measured(
        key=question.key,
        cohort=order.cohort.family,
        answer=grams,
        busy_s=time.monotonic() - began,
    )


def grams_of(
    sources: Mapping[str, NamedTensors],
    names: tuple[str, ...],
    base: str,
    skip: Collection[str] = (),
    worker: WorkerContext | None = None,
) -> GramResult:
    """<theta_i - theta_base, theta_j - theta_base> for i <= j of every floating-point tensor but
    those in `skip`.

    Raises UserError that names ingredient and tensor if keys, shapes or dtypes differ from those of
    the base, or if a value is not finite.
    """
    start = sources[base]
    for name in names:
        check_same_keys(base, start, name, sources[name])
    tensors = {}
    for key in start:
        terms = [(name, 1.0, sources[name][key]) for name in (base, *names)]
        check_same_shapes(key, terms)
        if key not in skip and terms[0][2].is_floating_point():
            gram = _gram(key, *((name, tensor.reshape(-1)) for name, _, tensor in terms))
            tensors[key] = _upper_rows(gram)
        if worker is not None:
            worker.progress.touch()
    return GramResult(tensors=tensors)


def _gram(key: str, base: tuple[str, Tensor], *others: tuple[str, Tensor]) -> Tensor:
    """(N, N) float64. Displacements are copied into a scratch tensor, because the last bits of a
    product may depend on the alignment of mapped memory."""
    start, size = base[1], max(1, GRAM_BLOCK // max(1, len(others)))
    scratch = torch.empty(len(others), min(size, len(start)), dtype=torch.float64)
    gram = torch.zeros(len(others), len(others), dtype=torch.float64)
    for low in range(0, len(start), size):
        part = slice(low, low + size)
        moved = scratch[:, : len(start[part])]
        for row, (_, tensor) in zip(moved, others, strict=True):
            row.copy_(tensor[part]).sub_(start[part])
        gram += moved @ moved.T
    if not torch.isfinite(gram).all():
        for name, tensor in (base, *others):
            refuse_not_finite(f"ingredient {name}", key, tensor)
    return gram


def _upper_rows(gram: Tensor) -> tuple[float, ...]:
    rows = gram.tolist()
    return tuple(value for i, row in enumerate(rows) for value in row[i:])
