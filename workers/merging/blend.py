"""Blending: the only place where weights are averaged.

    mix      [(a, 2), (b, 1)] / 3                theta = (2 * a + 1 * b) / 3, in float64
             below `head`: [0, 3] / 3            head  = b, bit for bit
    tensors  a.stem  a.block1 ...                one at a time, so memory is that of one tensor
             b.stem  b.block1 ...
    threads  |=========|=======|                 share a tensor
    blocks   |====|====|====|==|                 stay in the processor's cache

Sources are memory-mapped files, read once, straight into a block. Every element is a function of
the same element of the sources alone, so neither block size nor threads change a bit.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from workers.errors import UserError
from workers.types import Mix, component_of

NamedTensors = Mapping[str, Tensor]

BLEND_BLOCK = 32_000
"""Elements per block: accumulator and term, half a MiB together, stay in a core's cache. Torch does
not split operations this small over its own threads, which would wait for each other after every
one: on a busy machine that took ten times as long."""


def blend(
    mix: Mix, sources: Mapping[str, NamedTensors], block: int = BLEND_BLOCK
) -> Iterator[tuple[str, Tensor]]:
    """Yields (key, theta) with theta = (sum_i w_i theta_i) / d, in the key order of the first.

    The weights are those of the component of the tensor, else those of the mix. The sum is in
    float64 in mix order, starting from the first term; zero weights are dropped; the result is cast
    back to the stored dtype. If one checkpoint has all the weight, its tensor is returned itself.
    Integer tensors (counters) are those of the heaviest member, the first among equals.

    Raises UserError that names ingredient and tensor if keys, shapes or dtypes differ, or if a
    value is not finite.
    """
    if not mix.names:
        raise ValueError("a mix needs at least one checkpoint with a weight, got none")
    first = mix.names[0]
    for name in mix.names[1:]:
        check_same_keys(first, sources[first], name, sources[name])
    members = [name for name, _ in mix.weights]
    num_threads = torch.get_num_threads()
    with ThreadPoolExecutor(num_threads) as pool:
        for key in sources[first]:
            weights = zip(members, weights_of(mix, key), strict=True)
            terms = [(name, weight, sources[name][key]) for name, weight in weights if weight]
            if not terms:
                raise ValueError(f"no checkpoint of the mix has a weight for tensor {key!r}")
            check_same_shapes(key, terms)
            yield key, _blend_tensor(_Sum(key, terms, mix.divisor, block), pool, num_threads)


def weights_of(mix: Mix, key: str) -> tuple[float, ...]:
    """Weights of the mix's checkpoints in this tensor, in mix order, before division."""
    prefix = component_of(key, [component.prefix for component in mix.components])
    if prefix is None:
        return tuple(weight for _, weight in mix.weights)
    return next(component.weights for component in mix.components if component.prefix == prefix)


Term = tuple[str, float, Tensor]


@dataclass(frozen=True)
class _Sum:
    """The sum for one tensor."""

    key: str
    terms: list[Term]
    divisor: float
    block: int


def _blend_tensor(job: _Sum, pool: ThreadPoolExecutor, num_threads: int) -> Tensor:
    _, weight, first = job.terms[0]
    if not first.is_floating_point():
        return max(job.terms, key=lambda term: term[1])[2]
    if len(job.terms) == 1 and weight == job.divisor:
        _check_finite(first, job)
        return first
    blended = torch.empty(first.numel(), dtype=first.dtype)
    if num_threads == 1 or len(blended) <= job.block:
        _sum_part(job, blended, 0, len(blended))
    else:
        cuts = [len(blended) * i // num_threads for i in range(num_threads + 1)]
        for _ in pool.map(partial(_sum_part, job, blended), cuts, cuts[1:]):
            pass
    return blended.reshape(first.shape)


def _sum_part(job: _Sum, blended: Tensor, start: int, stop: int) -> None:
    """Block by block: total = w_1 t_1, then total += w_i t_i, then total / d."""
    flats = [(weight, tensor.reshape(-1)) for _, weight, tensor in job.terms]
    scratch = torch.empty(2, min(job.block, stop - start), dtype=torch.float64)
    for low in range(start, stop, job.block):
        part = slice(low, min(low + job.block, stop))
        out = blended[part]
        total, term = scratch[0, : len(out)], scratch[1, : len(out)]
        for i, (weight, flat) in enumerate(flats):
            into = term if i else total
            into.copy_(flat[part])
            if weight != 1.0:
                # Not `add_(term, alpha=weight)`: it may fuse multiplication and addition, and
                # whether it does depends on an element's position in the block.
                into.mul_(weight)
            if i:
                total.add_(term)
        out.copy_(total.div_(job.divisor))
        _check_finite(out, job)


def _check_finite(values: Tensor, job: _Sum) -> None:
    """Check the sum alone: it is finite only if all its terms are."""
    # min and max propagate NaN and allocate nothing; isfinite().all() costs several times more.
    low, high = torch.aminmax(values) if values.numel() else (torch.zeros(()), torch.zeros(()))
    if torch.isfinite(low) and torch.isfinite(high):
        return
    for name, _, tensor in job.terms:
        refuse_not_finite(f"ingredient {name}", job.key, tensor)
    raise UserError(
        f"tensor {job.key!r} of this mix leaves the range of {values.dtype}; lower its weights"
    )


def refuse_not_finite(owner: str, key: str, tensor: Tensor) -> None:
    """Raises UserError if a value is not finite; `owner` says whose tensor it is."""
    num = int((~torch.isfinite(tensor)).sum())
    if num:
        raise UserError(
            f"{owner}: {num} of {tensor.numel()} values of tensor {key!r} are not finite (its "
            "training diverged); leave this checkpoint out"
        )


def check_same_keys(first: str, expected: NamedTensors, name: str, other: NamedTensors) -> None:
    """Raises UserError that names a tensor of only one of the two."""
    missing, extra = expected.keys() - other.keys(), other.keys() - expected.keys()
    if missing or extra:
        key = min(missing or extra)
        verb = "lacks" if missing else "has a surplus"
        raise UserError(
            f"ingredient {name} {verb} tensor {key!r}, compared with {first}; only checkpoints of "
            "one architecture can be averaged"
        )


def check_same_shapes(key: str, terms: list[Term]) -> None:
    """Raises UserError that names the first ingredient of another shape or dtype."""
    first, _, expected = terms[0]
    for name, _, other in terms[1:]:
        if (other.shape, other.dtype) != (expected.shape, expected.dtype):
            raise UserError(
                f"ingredient {name}: tensor {key!r} is {other.dtype} {list(other.shape)}, but "
                f"{expected.dtype} {list(expected.shape)} in {first}; only checkpoints of one "
                "architecture can be averaged"
            )
