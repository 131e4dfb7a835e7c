"""Sync rounds: who takes part, and what everyone goes on from."""

from pathlib import Path
from typing import Any

import pytest

from tests.simulator.experiment import simulated
from tests.simulator.simulator import live
from tests.simulator.sync_scenarios import EPOCHS, PER_EPOCH, Starts, events, synced
from tests.simulator.world import World
from workers.types import MergeOpened, RoundClosed, Trained


def test_members_go_from_boundary_to_boundary_on_merged_weights(folder: Path) -> None:
    seen = Starts()
    world = World.at(folder, synced(), mishaps=seen)
    state = live(world)
    assert state.served is not None and state.served.soup is not None
    opened = events(world, MergeOpened)
    numbers = [each.round for each in opened if each.is_sync]
    assert numbers == [1, 2, 3]
    for run in world.expanded.runs:
        mine = [order for order in seen.orders if order.run.id == run.id]
        assert [order.stop_step for order in mine] == [10, 20, 30, 40]
        assert mine[0].rejoin is None
        for number, order in enumerate(mine[1:], start=1):
            assert order.start.name == f"soup/{opened[number - 1].merge}"
            assert order.own_checkpoint.name == f"{run.id}/{number * PER_EPOCH:08d}"


def test_nobody_goes_on_before_the_round_is_settled(folder: Path) -> None:
    world = World.at(folder, synced(4), early_stops=False)
    live(world, slots=4, lazy=0.5)
    ledger = world.ledger().replay()
    closed = {e.merge: e.seq for e in ledger if isinstance(e, RoundClosed)}
    opened = {e.merge: e.seq for e in ledger if isinstance(e, MergeOpened) and e.is_sync}
    arrivals = [e for e in ledger if isinstance(e, Trained) and e.step < EPOCHS * PER_EPOCH]
    for event in arrivals:
        merge = next(m for m in opened if m.endswith(f"{event.step // PER_EPOCH:04d}"))
        assert event.seq < opened[merge] < closed[merge]
        onward = [e.seq for e in ledger if e.kind == "ordered" and e.run == event.run]
        assert not [seq for seq in onward if event.seq < seq < closed[merge]]


def test_one_member_alone_merges_with_itself(folder: Path) -> None:
    world = World.at(folder, synced(1))
    live(world)
    assert [len(e.ingredients) for e in events(world, MergeOpened) if e.is_sync] == [1, 1, 1]


@pytest.mark.parametrize("method", ["greedy", "mean", "model_stock", {"greedy": {"tie": "strict"}}])
def test_any_recipe_merges(folder: Path, method: Any) -> None:
    world = World.at(folder, synced(method=method))
    assert live(world).served is not None
    assert len(events(world, RoundClosed)) == 3


def test_pull_keeps_what_is_its_own(folder: Path) -> None:
    seen = Starts()
    world = World.at(folder, synced(method="pull", alpha=0.8), mishaps=seen)
    live(world)
    rejoined = [order.rejoin for order in seen.orders if order.rejoin is not None]
    assert len(rejoined) == 9 and {each.alpha for each in rejoined} == {0.8}


def test_boundaries_may_lie_within_an_epoch(folder: Path) -> None:
    seen = Starts()
    world = World.at(folder, synced(2, epochs=2, every="8 steps"), mishaps=seen)
    live(world)
    stops = [order.stop_step for order in seen.orders if order.run is world.expanded.runs[0]]
    assert stops == [8, 16, 20]


def test_runs_of_other_lengths_leave_when_they_end(folder: Path) -> None:
    runs = [{"train.epochs": 2}, {"train.epochs": 4}, {"train.epochs": 4, "seed": 1}]
    world = World.at(
        folder, simulated(0, sweep={"seeds": None, "runs": runs}, merge={"mode": "sync"})
    )
    live(world)
    assert [len(e.ingredients) for e in events(world, MergeOpened) if e.is_sync] == [3, 2, 2]


def test_cohorts_merge_apart(folder: Path) -> None:
    runs = [{"model.name": name, "seed": s} for name in ("test_vit", "test_vit2") for s in (0, 1)]
    world = World.at(
        folder, simulated(0, sweep={"seeds": None, "runs": runs}, merge={"mode": "sync"})
    )
    live(world)
    opened = [e for e in events(world, MergeOpened) if e.is_sync]
    assert len({e.cohort for e in opened}) == 2 and len(opened) == 2
    assert all(len(e.ingredients) == 2 for e in opened)


def test_with_folds_only_runs_of_one_fold_are_merged(folder: Path) -> None:
    """Else one would learn from what it holds out."""
    world = World.at(
        folder,
        simulated(2, epochs=2, data={"folds": 2}, merge={"mode": "sync", "method": "mean"}),
    )
    live(world)
    fold_of = {run.id: run.fold for run in world.expanded.runs}
    opened = [event for event in events(world, MergeOpened) if event.is_sync]
    assert [len(event.ingredients) for event in opened] == [2, 2]
    assert all(len({fold_of[each.run] for each in e.ingredients}) == 1 for e in opened)
