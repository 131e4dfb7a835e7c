"""Tracks: a run and the moving average of its weights, both ingredients, one fate."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestrator.report.results import collect_results
from orchestrator.schedule import retention
from orchestrator.schedule.moment import Moment
from orchestrator.state.checkpoint_reducers import add_checkpoint, drop_checkpoints, drop_corrupt
from orchestrator.state.state import RunState, State
from tests.orchestrator.driver.test_driver import appends, outcome, soups
from tests.simulator.experiment import simulated
from tests.simulator.simulator import FragileLedger, Killed, SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.storage.layout import LEASE
from workers.types import (
    AnyOrder,
    Checkpoint,
    Checkpointed,
    ScoreOrder,
    TasteOrder,
    TrainOrder,
    ema_id,
    run_id_of,
)

AVERAGED = {"model_ema_decay": 0.999}


def lost(after: int, unheard: int = 0) -> Any:
    """The first attempt at training dies after so many events."""

    def loses(order: AnyOrder, attempt: int) -> Mishap | None:
        first = order.kind == "train" and attempt == 1
        return Mishap("lost", after=after, unheard=unheard) if first else None

    return loses


def named(state: State) -> dict[str, list[str]]:
    return {
        owner: [event.checkpoint.name for event in run.checkpoints]
        for owner, run in state.runs.items()
    }


def test_an_average_is_an_ingredient_a_single_and_a_row(folder: Path) -> None:
    world = World.at(folder, simulated(2, epochs=3, train=AVERAGED, soup={"ingredients": "all"}))
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    owners = {owner for run in world.expanded.runs for owner in (run.id, ema_id(run.id))}
    assert set(state.runs) == owners
    assert all(
        name.startswith(f"{owner}/") for owner, names in named(state).items() for name in names
    )
    greedy = next(m for m in state.merges.values() if m.opened.merge.startswith("greedy-"))
    assert [each.run for each in greedy.opened.ingredients] == [
        owner for run in world.expanded.runs for owner in [run.id] * 3 + [ema_id(run.id)] * 3
    ]
    scored = {
        o.checkpoint.name.partition("/")[0] for o in fleet.submitted if isinstance(o, ScoreOrder)
    }
    assert scored >= owners
    (order,) = [order for order in fleet.submitted if order.kind == "compare"]
    assert {member.partition("/")[0] for member in order.members} == owners
    rows = collect_results(Moment(world.expanded, state))["runs"]
    assert [row["role"] for row in rows] == ["member", "ema"] * 2
    assert rows[1]["params"] == {"seed": 0, "ema": 0.999} and set(rows[1]["scores"]) >= {
        "val",
        "test",
    }
    assert rows[1]["status"] == "done" and rows[1]["epochs"] == 3


def test_rounds_mix_averages_as_well(folder: Path) -> None:
    world = World.at(folder, simulated(3, epochs=3, train=AVERAGED))
    state = live(world)
    rounds = [m.opened for m in state.merges.values() if m.opened.observe]
    assert any(each.run.endswith("-ema") for opened in rounds for each in opened.ingredients)


def test_the_average_of_a_failed_run_is_in_no_soup(folder: Path) -> None:
    plan = simulated(2, epochs=3, train=AVERAGED)
    bad = plan.runs[0].id

    def diverges(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged", after=5) if order.run_id == bad else None

    state = live(World.at(folder, plan, mishaps=diverges))
    members = {name for names in soups(state).values() for name in names}
    assert members and not any(run_id_of(name.partition("/")[0]) == bad for name in members)


def test_an_average_made_twice_counts_once_and_its_copy_goes(folder: Path) -> None:
    """The worker dies after the average's checkpoint and before the run's own."""
    plan = simulated(2, epochs=3, train=AVERAGED, soup={"ingredients": "all"})
    calm = live(World.at(folder / "calm", plan))
    world = World.at(folder / "damaged", plan, mishaps=lost(after=5))
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    assert outcome(state) == outcome(calm)
    starts = [order.start.step for order in fleet.submitted if isinstance(order, TrainOrder)]
    assert starts == [0, 0, 10, 10]
    twice = {f"{ema_id(run.id)}/00000020-2" for run in plan.runs}
    assert world.deleted == twice and not any(run.duplicates for run in state.runs.values())
    assert {id_ for id_ in named_ids(state) if "/00000020-1" in id_} == {
        f"{ema_id(run.id)}/00000020-1" for run in plan.runs
    }


def named_ids(state: State) -> set[str]:
    return {event.checkpoint.id for run in state.runs.values() for event in run.checkpoints}


def test_what_nobody_heard_of_is_adopted_of_both(folder: Path) -> None:
    plan = simulated(2, epochs=3, train=AVERAGED, soup={"ingredients": "all"})
    calm = live(World.at(folder / "calm", plan))
    world = World.at(folder / "damaged", plan, mishaps=lost(after=4, unheard=2))
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    assert outcome(state) == outcome(calm)
    starts = [order.start for order in fleet.submitted if isinstance(order, TrainOrder)]
    assert [start.name for start in starts[2:]] == [f"{run.id}/00000020" for run in plan.runs]
    assert not world.deleted, "nothing was made twice"


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_driver_killed_at_any_ledger_write_ends_the_same(folder: Path, how: str) -> None:
    plan = simulated(
        1,
        epochs=3,
        data={"folds": 2},
        train={**AVERAGED, "patience": 1},
        soup={"ingredients": [1, 2]},
        ensemble={"stacking": True},
    )
    calm = live(World.at(folder / "calm", plan))
    for dies_at in range(1, appends(folder, plan) + 1, 2):
        world = World.at(folder / f"{how}-{dies_at}", plan)
        with pytest.raises(Killed):
            live(world, FragileLedger(world.store, dies_at, how))
        state = live(world)
        assert outcome(state) == outcome(calm)
        assert not any(run.duplicates for run in state.runs.values())


def test_lives_with_any_mishaps_end_the_same(folder: Path) -> None:
    plan = simulated(2, epochs=3, train={**AVERAGED, "patience": 1}, data={"folds": 2})
    calm = live(World.at(folder / "calm", plan))
    lives = itertools.count()

    @settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
    @given(after=st.integers(1, 9), unheard=st.integers(0, 4), slots=st.integers(1, 4))
    def holds(after: int, unheard: int, slots: int) -> None:
        world = World.at(folder / f"{next(lives)}", plan, mishaps=lost(after, unheard))
        assert outcome(live(world, slots=slots, lazy=0.3, seed=after)) == outcome(calm)

    holds()


def test_a_corrupt_last_average_takes_its_run_back_to_make_it_again(folder: Path) -> None:
    plan = simulated(
        3, epochs=3, train=AVERAGED, soup={"ingredients": "last"}, merge={"mode": "off"}
    )
    calm = live(World.at(folder / "calm", plan))
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TasteOrder) or damaged:
            return None
        averages = [each.id for each in order.ingredients if "-ema/" in each.id]
        damaged.extend(averages[:1])
        return Mishap("corrupt", checkpoint=damaged[0]) if damaged else None

    world = World.at(folder / "damaged", plan, mishaps=breaks)
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    again = [order for order in fleet.submitted if isinstance(order, TrainOrder)][-1]
    assert damaged and again.run.id == run_id_of(damaged[0].partition("/")[0])
    assert outcome(state) == outcome(calm)
    assert f"{again.run.id}/00000030-1" in world.deleted, "its own of that step was made again"


# The fold of checkpoints


def made(owner: str, step: int, attempt: int) -> Checkpointed:
    checkpoint = Checkpoint(
        name=f"{owner}/{step:08d}", attempt=attempt, step=step, sha256="a", num_bytes=1
    )
    return Checkpointed(run=run_id_of(owner), checkpoint=checkpoint, score=None)


@given(st.permutations([(10, 1), (10, 2), (20, 1), (20, 2), (20, 3)]))
def test_the_first_of_a_step_counts_and_the_others_are_spare(words: list[tuple[int, int]]) -> None:
    run = RunState()
    for step, attempt in [*words, *words]:
        add_checkpoint(run, made("r-ema", step, attempt))
    firsts = [next(word for word in words if word[0] == step) for step in (10, 20)]
    assert [(e.checkpoint.step, e.checkpoint.attempt) for e in run.checkpoints] == firsts
    assert len(run.duplicates) == 3
    counted = run.checkpoints
    drop_checkpoints(run, {checkpoint.id for checkpoint in run.duplicates})
    assert run.duplicates == () and run.checkpoints == counted


def test_a_corrupt_checkpoint_of_the_run_leaves_the_average_what_it_has() -> None:
    runs = {owner: RunState() for owner in ("r", "r-ema")}
    for owner, step in itertools.product(runs, (10, 20)):
        add_checkpoint(runs[owner], made(owner, step, 1))
    runs["r"].trained_to, runs["r"].ended_early = 20, True

    def without(checkpoint: str) -> dict[str, RunState]:
        left = copy.deepcopy(runs)
        drop_corrupt(left, checkpoint)
        return left

    left = without("r/00000020-1")
    assert left["r-ema"] == runs["r-ema"]
    assert left["r"].trained_to == 10 and not left["r"].ended_early
    both = without("r-ema/00000020-1")
    assert both["r"].last is not None and both["r"].last.step == 10
    assert [spare.id for spare in both["r"].duplicates] == ["r/00000020-1"]
    older = without("r-ema/00000010-1")
    assert older["r"] == runs["r"], "an average's older one is only gone"
    assert without("soup/x") == runs


def test_a_spare_is_retired_even_if_its_name_is_needed(folder: Path) -> None:
    plan = simulated(2, epochs=2, train=AVERAGED)
    world = World.at(folder, plan)
    mind = driver(world, SimulatedFleet(world))
    state = mind.run()
    world.store.delete(LEASE)
    owner = ema_id(plan.runs[0].id)
    extra = made(owner, state.run(owner).checkpoints[-1].checkpoint.step, 7)
    add_checkpoint(state.runs[owner], extra)
    state = State(preflight=state.preflight, runs=state.runs)
    (order,) = retention.retire_orders(Moment(plan, state))
    assert extra.checkpoint in order.checkpoints  # type: ignore[union-attr]
