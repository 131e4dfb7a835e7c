"""Loader: which images a step sees, and the same bits however they are read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.data import epoch_order, step_batches, survey, train_batches, train_transform
from workers.spec import DataSpec, TrainSpec
from workers.types import UserError

PREPROCESSING = {
    "input_size": [3, 16, 16],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 0.9,
    "crop_mode": "center",
}


@given(
    n=st.integers(4, 200),
    batch_size=st.integers(2, 9),
    accumulate=st.integers(1, 3),
    ranks=st.integers(1, 4),
    micro=st.one_of(st.none(), st.integers(1, 9)),
)
def test_every_step_is_shared_evenly_and_no_image_comes_twice(
    n: int, batch_size: int, accumulate: int, ranks: int, micro: int | None
) -> None:
    spec = TrainSpec(batch_size=batch_size, grad_accum_steps=accumulate)
    order = epoch_order(n, 0, "stream", 1)
    plans = [step_batches(order, spec, ranks, rank, micro) for rank in range(ranks)]
    whole = [step_batches(order, spec, ranks, rank) for rank in range(ranks)]
    per_step = batch_size * accumulate * ranks
    assert {len(plan) for plan in plans} == {spec.steps_per_epoch(n, ranks)}
    seen: list[int] = []
    for step in range(spec.steps_per_epoch(n, ranks)):
        shares = [np.concatenate(plan[step]) for plan in plans]
        assert len({len(share) for share in shares}) == 1
        assert min(len(batch) for plan in plans for batch in plan[step]) >= 2
        for plan in plans:
            lengths = [len(batch) for batch in plan[step]]
            assert max(lengths) - min(lengths) <= 1
        together = np.concatenate(shares)
        asked = order[step * per_step : (step + 1) * per_step]
        assert len(asked) - len(together) < ranks
        same = np.concatenate([np.concatenate(plan[step]) for plan in whole])
        assert together.tolist() == same.tolist()
        seen += together.tolist()
    assert len(seen) == len(set(seen))


def test_orders_differ_by_seed_stream_and_epoch() -> None:
    orders = [
        epoch_order(50, *key).tolist()
        for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == epoch_order(50, 0, "a", 0).tolist()


def test_batches_do_not_depend_on_process_or_history() -> None:
    images, _, _ = survey(DataSpec(source="digits"), seed=0)
    spec = TrainSpec(batch_size=4, aa="rand-m7-mstd0.5", reprob=0.5, color_jitter=0.3)
    transform = train_transform(spec, PREPROCESSING)
    plan = [
        batch for step in step_batches(epoch_order(24, 0, "s", 0), spec, 1, 0) for batch in step
    ]

    def read(plan: list[np.ndarray], workers: int) -> list[torch.Tensor]:
        return [x for x, _ in train_batches(images, transform, plan, 0, "s", 0, workers)]

    alone = read(plan, workers=0)
    torch.manual_seed(99)
    for other in (read(plan, workers=2), read(plan[::-1], workers=0)[::-1]):
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))
    labels = [y for _, y in train_batches(images, transform, plan, 0, "s", 0, 0)]
    assert labels[0].tolist() == images.labels("train")[plan[0]].tolist()
    assert labels[0].dtype == torch.int64 and alone[0].dtype == torch.float32
    later = [x for x, _ in train_batches(images, transform, plan, 0, "s", 1, 0)]
    assert not torch.equal(alone[0], later[0])


def test_an_unknown_augmentation_policy_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="nonsense"):
        train_transform(TrainSpec(aa="nonsense"), PREPROCESSING)
