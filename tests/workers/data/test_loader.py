"""Loader: the images of every step, and equal bits for any number of processes."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.workers.data.augmentations import PREPROCESSING, pictures, specs
from workers.config.train import TrainConfig
from workers.data import epoch_order, step_batches, train_batches, train_transform

ROOT = Path(__file__).parents[3]
LABELS = np.arange(8) % 3
PLAN = [np.array([3, 1, 5]), np.array([0, 7, 2]), np.array([6, 4])]

Batch = tuple[torch.Tensor, torch.Tensor]


@given(
    n=st.integers(4, 200),
    batch_size=st.integers(2, 9),
    accumulate=st.integers(1, 3),
    ranks=st.integers(1, 4),
    micro=st.one_of(st.none(), st.integers(1, 9)),
)
def test_ranks_share_every_step_evenly_and_no_image_repeats(
    n: int, batch_size: int, accumulate: int, ranks: int, micro: int | None
) -> None:
    spec = TrainConfig(batch_size=batch_size, grad_accum_steps=accumulate)
    order = epoch_order(n, 0, "stream", 1)
    plans = [step_batches(order, spec, ranks, rank, micro) for rank in range(ranks)]
    whole = [step_batches(order, spec, ranks, rank) for rank in range(ranks)]
    per_step = batch_size * accumulate * ranks
    assert {len(plan) for plan in plans} == {spec.steps_per_epoch(n, ranks)}
    images: list[int] = []
    for step in range(spec.steps_per_epoch(n, ranks)):
        shares = [np.concatenate(plan[step]) for plan in plans]
        assert len({len(share) for share in shares}) == 1
        assert min(len(batch) for plan in plans for batch in plan[step]) >= 2
        for plan in plans:
            lengths = [len(batch) for batch in plan[step]]
            assert max(lengths) - min(lengths) <= 1
        together = np.concatenate(shares)
        expected = order[step * per_step : (step + 1) * per_step]
        assert len(expected) - len(together) < ranks
        same = np.concatenate([np.concatenate(plan[step]) for plan in whole])
        assert together.tolist() == same.tolist()
        images += together.tolist()
    assert len(images) == len(set(images))


def test_orders_differ_by_seed_stream_and_epoch() -> None:
    orders = [
        epoch_order(50, *key).tolist()
        for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == epoch_order(50, 0, "a", 0).tolist()


def _read(
    spec: TrainConfig,
    plan: list[np.ndarray] = PLAN,
    workers: int = 0,
    seed: int = 0,
    stream: str = "s",
    epoch: int = 0,
) -> list[Batch]:
    return list(_loader(spec, plan, workers, seed, stream, epoch))


def _loader(
    spec: TrainConfig,
    plan: list[np.ndarray] = PLAN,
    workers: int = 0,
    seed: int = 0,
    stream: str = "s",
    epoch: int = 0,
) -> Iterator[Batch]:
    transform = train_transform(spec, PREPROCESSING)
    return train_batches(pictures(), LABELS, transform, plan, seed, stream, epoch, workers)


def _equal(left: list[Batch], right: list[Batch]) -> bool:
    """Whether bits, types and memory layouts are equal."""
    return all(
        torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=20, deadline=None)
@given(spec=specs(), scramble=st.integers(0, 2**32 - 1), order=st.permutations(range(8)))
def test_a_sample_does_not_depend_on_earlier_samples(
    spec: TrainConfig, scramble: int, order: list[int]
) -> None:
    batches = _read(spec)
    assert [x.shape for x, _ in batches] == [(3, 3, 24, 24), (3, 3, 24, 24), (2, 3, 24, 24)]
    for (_, y), indices in zip(batches, PLAN, strict=True):
        assert y.dtype == torch.int64 and y.tolist() == LABELS[indices].tolist()
    random.seed(scramble)
    np.random.seed(scramble)
    torch.manual_seed(scramble)
    random.gauss(), np.random.normal(), torch.randn(3)  # generators that keep a spare value
    ((x, _),) = _read(spec, [np.array(order)])
    samples = dict(zip(np.concatenate(PLAN), torch.cat([x for x, _ in batches]), strict=True))
    assert all(torch.equal(x[place], samples[i]) for place, i in enumerate(order))


@settings(max_examples=8, deadline=None)
@given(spec=specs())
def test_a_batch_does_not_depend_on_the_number_of_loader_processes(spec: TrainConfig) -> None:
    alone = _read(spec)
    assert _equal(alone, _read(spec, workers=1)) and _equal(alone, _read(spec, workers=2))


EVERYTHING = TrainConfig(
    **{"aa": "augmix-m3-w3", "color_jitter": 0.3, "reprob": 0.5, "grayscale": 0.2},
    **{"affine": {"degrees": 20}, "perspective": {"p": 0.5}},
)


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3"])
def test_seeds_streams_and_epochs_differ(aa: str) -> None:
    spec = TrainConfig(aa=aa)
    batches = [_read(spec), _read(spec, seed=1), _read(spec, stream="t"), _read(spec, epoch=1)]
    for i, reading in enumerate(batches):
        assert _equal(reading, reading)
        assert not any(_equal(reading[:1], other[:1]) for other in batches[:i])


def test_a_fresh_interpreter_reads_the_same_bits() -> None:
    code = """
import sys
from tests.workers.data.test_loader import EVERYTHING, _read
sys.stdout.buffer.write(b"".join(x.numpy().tobytes() for x, _ in _read(EVERYTHING)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"".join(x.numpy().tobytes() for x, _ in _read(EVERYTHING))


def _num_threads(_: Image.Image) -> torch.Tensor:
    return torch.full((1, 1, 1), torch.get_num_threads())


def test_loader_processes_use_one_thread_and_no_global_generator_here() -> None:
    before, states = torch.get_num_threads(), (torch.get_rng_state(), random.getstate())
    torch.set_num_threads(2)
    try:
        batches = list(train_batches(pictures(), LABELS, _num_threads, PLAN, 0, "s", 0, 2))
    finally:
        torch.set_num_threads(before)
    assert all((x == 1).all() for x, _ in batches)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a signal for it")
def test_loader_processes_end_with_a_killed_parent() -> None:
    """torch's own watchdog notices after five seconds."""
    code = """
import multiprocessing, time
from tests.workers.data.test_loader import TrainConfig, _loader
batches = _loader(TrainConfig(), workers=2)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
        assert len(children) == 2
        assert psutil.wait_procs(children, timeout=3)[1] == []


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_pinned(workers: int) -> None:
    transform = train_transform(TrainConfig(), PREPROCESSING)
    pinned = list(train_batches(pictures(), LABELS, transform, PLAN, 0, "s", 0, workers, pin=True))
    assert all(x.is_pinned() and y.is_pinned() for x, y in pinned)
    assert _equal(pinned, _read(TrainConfig()))
