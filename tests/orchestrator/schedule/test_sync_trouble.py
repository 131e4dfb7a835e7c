"""Sync rounds with late, dead and spoilt members, and with drivers that die."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.driver.ledger import Ledger
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import FragileLedger, Killed, driver, live
from tests.simulator.sync_scenarios import EPOCHS, PER_EPOCH, SlowFleet, Starts, events, synced
from tests.simulator.world import Mishap, World
from workers.storage.layout import LEASE
from workers.storage.store import Store
from workers.types import (
    AnyEvent,
    AnyOrder,
    BlendOrder,
    MergeOpened,
    Rejoined,
    RoundClosed,
    TrainOrder,
)


def test_who_is_late_is_left_out_and_rejoins_from_the_newest_weights(folder: Path) -> None:
    seen = Starts()
    world = World.at(folder, synced(3, deadline_s=20.0), mishaps=seen)
    late = world.expanded.runs[1].id
    state = driver(world, SlowFleet(world, late, stop_step=20, turns=100)).run()
    opened = {e.round: e for e in events(world, MergeOpened) if e.is_sync}
    (decision,) = opened[2].left_out
    assert decision.candidate == late and "late" in decision.reason
    first = events(world, Rejoined)[0]
    assert first.run == late and first.step == 20
    onward = next(o for o in seen.orders if o.run.id == late and o.stop_step == 30)
    assert onward.start.name == f"soup/{first.merge}" and onward.own_checkpoint.step == 20
    assert state.run(late).trained_to == 40 and state.served is not None


def test_without_a_deadline_everyone_waits(folder: Path) -> None:
    world = World.at(folder, synced(3))
    slow = SlowFleet(world, world.expanded.runs[1].id, stop_step=20, turns=1000)
    driver(world, slow).run()
    assert all(not e.left_out for e in events(world, MergeOpened)) and world.clock > 500


def test_a_quorum_is_waited_for_beyond_the_deadline(folder: Path) -> None:
    world = World.at(folder, synced(3, deadline_s=5.0, quorum=3))
    slow = SlowFleet(world, world.expanded.runs[1].id, stop_step=20, turns=200)
    driver(world, slow).run()
    assert all(not e.left_out for e in events(world, MergeOpened))


def test_the_dead_are_named_and_nobody_waits_for_them(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        dies = isinstance(order, TrainOrder) and order.run.seed == 1 and order.stop_step == 20
        return Mishap("diverged") if dies else None

    world = World.at(folder, synced(3), mishaps=breaks)
    state = live(world)
    opened = {e.round: e for e in events(world, MergeOpened) if e.is_sync}
    assert [len(opened[n].left_out) for n in (1, 2, 3)] == [0, 1, 1]
    assert "failed" in opened[2].left_out[0].reason
    assert state.served is not None and state.served.soup is not None


def test_the_guard_rolls_back_what_lowers_the_score(folder: Path) -> None:
    closed: list[RoundClosed] = []
    for seed in range(6):
        world = World.at(folder / str(seed), synced(3, guard=True), seed=seed)
        live(world)
        state, kept = world.state(), events(world, RoundClosed)
        for event in kept:
            opened = state.merges[event.merge].opened
            merged = state.scores[f"soup/{event.merge}"]["val"].top1
            members = sum(each.score for each in opened.ingredients) / len(opened.ingredients)
            assert (event.soup is not None) == (merged >= members)
        closed += kept
    assert {event.soup is None for event in closed} == {True, False}


def test_a_round_that_breaks_leaves_everyone_its_own_weights(folder: Path) -> None:
    seen = Starts()

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        seen(order, attempt)
        return Mishap("refused") if order.id.startswith("blend-sync") else None

    world = World.at(folder, synced(3), mishaps=breaks)
    assert live(world).served is not None
    assert all("own weights" in e.reason for e in events(world, RoundClosed))
    assert all(order.rejoin is None for order in seen.orders)


def test_a_corrupt_member_gives_the_round_up(folder: Path) -> None:
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if isinstance(order, BlendOrder) and order.name.endswith("0002") and not damaged:
            damaged.append(order.ingredients[0].id)
            return Mishap("corrupt", checkpoint=damaged[0])
        return None

    world = World.at(folder, synced(3), mishaps=breaks)
    state = live(world)
    assert damaged and state.served is not None
    assert [event.soup is None for event in events(world, RoundClosed)] == [False, True, False]


def test_finish_in_the_middle_of_a_round_makes_the_soup(folder: Path) -> None:
    timed = simulated(3, epochs=EPOCHS, merge={"mode": "sync"}, fleet={"max_hours": 0.1})
    world = World.at(folder, timed)
    slow = SlowFleet(world, world.expanded.runs[1].id, stop_step=20, turns=10_000)
    state = driver(world, slow).run()
    assert state.finish_reason is not None
    assert state.served is not None and state.served.soup is not None


def test_only_the_newest_merged_weights_are_kept(folder: Path) -> None:
    world = World.at(folder, synced(3, epochs=8))
    state = live(world)
    rounds_left = [name for name in state.soups if name.startswith("soup/sync-")]
    assert len(rounds_left) == 1 and rounds_left[0].endswith("0007")
    told = [merge for merge in state.merges.values() if merge.opened.is_sync]
    assert all(f"soup/{merge.opened.merge}" in state.scores for merge in told)
    assert all(merge.diversity is not None for merge in told)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 3),
    method=st.sampled_from(["mean", "greedy", "pull"]),
    optimizer_state=st.sampled_from(["keep", "reset", "average"]),
    deaths=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from(["before", "torn", "after"])), max_size=4
    ),
)
def test_drivers_that_die_in_a_round_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    method: str,
    optimizer_state: str,
    deaths: list[tuple[int, str]],
) -> None:
    told = {"method": method, "optimizer_state": optimizer_state}
    calm, hard = (
        World.at(tmp_path_factory.mktemp("world"), synced(3, **told), seed=seed) for _ in "ab"
    )
    undisturbed = live(calm)
    for dies_at, how in deaths:
        try:
            live(hard, FragileLedger(hard.store, dies_at, how))
        except Killed:
            continue
        break
    state = live(hard) if hard.state().finished is None else hard.state()
    assert state.served == undisturbed.served or _soup(state) == _soup(undisturbed)
    assert _starts(hard) == _starts(calm)


def _soup(state: State) -> str | None:
    return state.served.soup if state.served is not None else None


def _starts(world: World) -> dict[str, str | None]:
    """Of every round: what came of it."""
    return {event.merge: event.soup for event in events(world, RoundClosed)}


@pytest.mark.parametrize("left", [0, 2])
def test_merged_weights_that_were_spoilt_stop_nobody(folder: Path, left: int) -> None:
    """Found so by the first or the last that starts from them: it goes on without."""
    seen, damaged = Starts(), []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        seen(order, attempt)
        if isinstance(order, TrainOrder) and order.start.name.endswith("-0002"):
            damaged.append(order.id)
            if len(damaged) == left + 1:
                return Mishap("corrupt", checkpoint=order.start.id)
        return None

    world = World.at(folder, synced(3), mishaps=breaks)
    state = live(world)
    assert state.served is not None and state.served.soup is not None
    assert all(state.run(run.id).trained_to == EPOCHS * PER_EPOCH for run in world.expanded.runs)
    assert not [run for run in world.expanded.runs if state.run(run.id).failed]


@pytest.mark.parametrize("whose", ["own", "another's"])
def test_a_state_spoilt_since_is_left_out_of_the_average(folder: Path, whose: str) -> None:
    """Whoever's it is: that run trains again to the boundary, and the others go on."""
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TrainOrder) or order.rejoin is None or damaged:
            return None
        others = [each for each in order.rejoin.peers if each.id != order.rejoin.own_checkpoint.id]
        spoilt = order.rejoin.own_checkpoint if whose == "own" else others[0]
        damaged.append(spoilt.id)
        return Mishap("corrupt", checkpoint=spoilt.id)

    world = World.at(folder, synced(3, optimizer_state="average"), mishaps=breaks)
    state = live(world)
    assert damaged and state.served is not None and state.served.soup is not None
    assert all(state.run(run.id).trained_to == EPOCHS * PER_EPOCH for run in world.expanded.runs)


def test_a_run_has_one_order_at_a_time(folder: Path) -> None:
    """Although its checkpoint is found spoilt by others while it trains on from there."""
    seen, damaged = Starts(), []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        seen(order, attempt)
        if order.id.startswith("score-soup_sync") and not damaged:
            damaged.append(seen.orders[-1].own_checkpoint.id)
            return Mishap("corrupt", after=1, checkpoint=damaged[0])
        return None

    world = World.at(folder, synced(3), mishaps=breaks)
    state = live(world, slots=4)
    assert damaged and state.served is not None
    assert all(state.run(run.id).trained_to == EPOCHS * PER_EPOCH for run in world.expanded.runs)


def test_while_there_is_no_driver_nobody_is_late(folder: Path) -> None:
    world = World.at(folder, synced(3, deadline_s=20.0))
    slow = SlowFleet(world, world.expanded.runs[1].id, stop_step=20, turns=20)
    with pytest.raises(Killed):
        driver(world, slow, Fatal(world.store, of="trained", nth=5)).run()
    world.store.delete(LEASE)
    world.clock += 3600
    live(world, slots=3)
    assert [e.left_out for e in events(world, MergeOpened) if e.is_sync] == [(), (), ()]


class Fatal(Ledger):
    """The driver dies after the nth event of a kind."""

    def __init__(self, store: Store, of: str, nth: int) -> None:
        super().__init__(store)
        self._of, self._left = of, nth

    def append(self, events: list[AnyEvent]) -> list[AnyEvent]:
        written = super().append(events)
        self._left -= sum(event.kind == self._of for event in written)
        if self._left <= 0:
            raise Killed
        return written


def test_a_micro_batch_that_fits_is_kept_from_round_to_round(folder: Path) -> None:
    sizes: list[int | None] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TrainOrder):
            return None
        sizes.append(order.micro_batch)
        return Mishap("oom", after=1) if (order.micro_batch or 32) > 8 else None

    live(World.at(folder, synced(1), mishaps=breaks))
    assert sizes == [None, 16, 8, 8, 8, 8]
