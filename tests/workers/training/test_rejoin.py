"""A run that continues from merged weights, and what it keeps of its own."""

import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.workers.small_runs import VIT, checkpoints, make_base, make_run, make_setting
from workers.analysis.diversity import measure_diversity
from workers.context import WorkerContext
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.checkpoints import TrainState, load_train_state, open_weights
from workers.storage.predictions import read_predictions
from workers.storage.store import Store
from workers.training.train import train
from workers.types import (
    AnyEvent,
    Checkpoint,
    Cohort,
    Diversity,
    DiversityOrder,
    OptimizerState,
    Rejoin,
    RunSpec,
    TrainOrder,
    WeightSpaceGroup,
    WorkerConfig,
)

BOUNDARY, STOP = 3, 6


@pytest.fixture
def config(tmp_path: Path) -> WorkerConfig:
    return make_setting(tmp_path)


@pytest.fixture
def base(config: WorkerConfig) -> Checkpoint:
    return make_base(config, VIT)


def member(id_: str) -> RunSpec:
    return make_run(id_).model_copy(update={"seed": ord(id_)})


def up_to_the_boundary(worker: WorkerContext, run: RunSpec, base: Checkpoint) -> Checkpoint:
    events = perform(worker, TrainOrder(run=run, start=base, stop_step=BOUNDARY))
    return checkpoints(events)[-1]


def perform(worker: WorkerContext, order: TrainOrder) -> list[AnyEvent]:
    return list(train(order, 0, worker))


def weights(config: WorkerConfig, checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in open_weights(Store(config.uri), checkpoint).items()}


def soup_of(config: WorkerConfig, *members: Checkpoint) -> Checkpoint:
    every = [weights(config, each) for each in members]
    mean = {k: sum(each[k].double() for each in every) / len(every) for k in every[0]}
    tensors = {k: v.to(every[0][k].dtype) for k, v in mean.items()}  # type: ignore[union-attr]
    return write_checkpoint(Store(config.uri), "soup/mean", None, 0, tensors)


def resumed_as(
    config: WorkerConfig, like: Checkpoint, tensors: dict[str, Tensor], state: TrainState
) -> Checkpoint:
    """A checkpoint of the same run and step with these weights and this state."""
    return write_checkpoint(Store(config.uri), like.name, 9, like.step, tensors, train_state=state)


def last(events: list[AnyEvent]) -> Checkpoint:
    return checkpoints(events)[-1]


@pytest.fixture
def at_boundary(config: WorkerConfig, base: Checkpoint) -> tuple[Checkpoint, ...]:
    """Checkpoints of three members at the boundary, in the middle of an epoch."""
    worker = WorkerContext(config)
    return tuple(up_to_the_boundary(worker, member(id_), base) for id_ in "abc")


def reference(
    config: WorkerConfig, at_boundary: tuple[Checkpoint, ...], policy: OptimizerState
) -> TrainState:
    """The expected state of the first member, computed by hand."""
    states = [load_train_state(Store(config.uri), each) for each in at_boundary]
    own = states[0]
    assert own is not None
    if policy == "keep":
        return own
    if policy == "reset":
        return TrainState({}, {**own.scalars, "optimizer": {}, "strides": {}})
    means = {
        key: (sum(s.tensors[key].double() for s in states if s) / 3).to(tensor.dtype)  # type: ignore[union-attr]
        for key, tensor in own.tensors.items()
    }
    return TrainState(means, own.scalars)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("policy", ["keep", "reset", "average"])
def test_weights_are_the_merged_ones_and_the_optimizer_follows_its_policy(
    config: WorkerConfig,
    at_boundary: tuple[Checkpoint, ...],
    policy: OptimizerState,
    warm: bool,
    base: Checkpoint,
) -> None:
    run, merged = member("a"), soup_of(config, *at_boundary)
    others = at_boundary if policy == "average" else ()
    rejoin = Rejoin(own_checkpoint=at_boundary[0], optimizer_state=policy, peers=others)
    worker = WorkerContext(config)
    if warm:
        up_to_the_boundary(worker, run, base)
    events = perform(worker, TrainOrder(run=run, start=merged, stop_step=STOP, rejoin=rejoin))
    assert [event.step for event in events if event.kind == "evaluated"] == [STOP]

    by_hand = resumed_as(
        config, at_boundary[0], weights(config, merged), reference(config, at_boundary, policy)
    )
    expected = perform(WorkerContext(config), TrainOrder(run=run, start=by_hand, stop_step=STOP))
    assert last(events).sha256 == last(expected).sha256


def test_the_policies_differ(config: WorkerConfig, at_boundary: tuple[Checkpoint, ...]) -> None:
    merged, found = soup_of(config, *at_boundary), set()
    for policy in ("keep", "reset", "average"):
        others = at_boundary if policy == "average" else ()
        rejoin = Rejoin(own_checkpoint=at_boundary[0], optimizer_state=policy, peers=others)
        order = TrainOrder(run=member("a"), start=merged, stop_step=STOP, rejoin=rejoin)
        found.add(last(perform(WorkerContext(config), order)).sha256)
    assert len(found) == 3


def test_pull_moves_towards_the_merged_weights_with_the_learning_rate(
    config: WorkerConfig, at_boundary: tuple[Checkpoint, ...]
) -> None:
    """Cosine over twelve steps: at the third, (1 + cos(pi / 4)) / 2 of the rate is left."""
    merged = soup_of(config, *at_boundary)
    own, mean = weights(config, at_boundary[0]), weights(config, merged)
    share = 0.25 * (1 + math.cos(math.pi * BOUNDARY / 12)) / 2
    pulled = {
        key: ((1 - share) * own[key].double() + share * mean[key].double()).to(own[key].dtype)
        for key in own
    }
    state = load_train_state(Store(config.uri), at_boundary[0])
    assert state is not None
    by_hand = resumed_as(config, at_boundary[0], pulled, state)
    expected = perform(
        WorkerContext(config), TrainOrder(run=member("a"), start=by_hand, stop_step=STOP)
    )
    order = TrainOrder(
        run=member("a"),
        start=merged,
        stop_step=STOP,
        rejoin=Rejoin(own_checkpoint=at_boundary[0], alpha=0.75),
    )
    events = perform(WorkerContext(config), order)
    found, hoped = (weights(config, last(each)) for each in (events, expected))
    moved = max(float((own[key] - pulled[key]).abs().max()) for key in own)
    apart = max(float((found[key] - hoped[key]).abs().max()) for key in own)
    assert apart < 1e-6 < moved


def test_diversity_is_that_of_weights_and_of_labels(
    config: WorkerConfig, base: Checkpoint, at_boundary: tuple[Checkpoint, ...]
) -> None:
    start = weights(config, base)
    moved = [
        torch.cat(
            [
                (tensor - start[key]).double().flatten()
                for key, tensor in weights(config, each).items()
            ]
        )
        for each in at_boundary
    ]
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in combinations(moved, 2)]
    labelled = [read_predictions(Store(config.uri), c.id, "val")[2].argmax(1) for c in at_boundary]
    apart = [float((a != b).mean()) for a, b in combinations(labelled, 2)]
    (event,) = measure_diversity(_diversity_order(base, at_boundary), 0, WorkerContext(config))
    assert isinstance(event, Diversity)
    assert event.cosine == pytest.approx(sum(map(float, cosines)) / 3, abs=1e-6)
    assert event.disagreement == pytest.approx(sum(apart) / 3)


def test_a_member_alone_has_no_diversity(
    config: WorkerConfig, base: Checkpoint, at_boundary: tuple[Checkpoint, ...]
) -> None:
    (event,) = measure_diversity(_diversity_order(base, at_boundary[:1]), 0, WorkerContext(config))
    assert isinstance(event, Diversity)
    assert (event.cosine, event.disagreement) == (None, None)


def _diversity_order(base: Checkpoint, members: tuple[Checkpoint, ...]) -> DiversityOrder:
    cohort = Cohort(id="c", model=VIT, base=base.name, batchnorm="none")
    weighed = WeightSpaceGroup(cohort=cohort, base=base, ingredients=members, components=())
    return DiversityOrder(merge="sync-c-0001", members=weighed)
