"""Retention: what is deleted was superseded, and no later order names it."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.experiment.resolved import resolve
from orchestrator.schedule import due, retention
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.orchestrator.driver.test_driver import extended
from tests.simulator.experiment import facts, simulated
from tests.simulator.simulator import live
from tests.simulator.world import Mishap, World
from workers.types import (
    AnyOrder,
    Checkpoint,
    Checkpointed,
    Ingredient,
    MergeOpened,
    Preflighted,
    RetireOrder,
    Score,
    run_id_of,
)


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # whole lives are slow to shrink
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1000),
    ingredients=st.sampled_from(["best", "last", "all", "top-2", [1, 3]]),
    train=st.sampled_from([{}, {"model_ema_decay": 0.9}, {"patience": 1}]),
    slots=st.integers(1, 4),
    bases=st.sampled_from([{}, {"trunk_epochs": 3}, {"probe_epochs": 2, "trunk_epochs": 2}]),
    unlucky=st.integers(0, 6),
    more=st.sampled_from([0, 2]),
)
def test_no_order_ever_names_a_deleted_checkpoint(
    folder: Path,
    seed: int,
    ingredients: str | list[int],
    train: dict[str, Any],
    slots: int,
    bases: dict[str, Any],
    unlucky: int,
    more: int,
) -> None:
    """The world checks every order; here with runs that lose workers on the way, and with more of
    them once the first have ended."""

    def loses(order: AnyOrder, attempt: int) -> Mishap | None:
        hit = unlucky and (len(order.id) + attempt) % 7 == unlucky and attempt < 3
        return Mishap("lost", after=attempt + 1, unheard=1) if hit else None

    plan = simulated(
        4,
        epochs=4,
        train=train,
        soup={"ingredients": ingredients},
        base=bases,
        merge={"every": "10 steps"},
    )
    # An experiment of its own every time: another one's ledger knows other runs.
    world = World.at(Path(tempfile.mkdtemp(dir=folder)), plan, seed=seed, mishaps=loses)
    state = live(world, slots=slots, lazy=0.4, seed=seed)
    if more:
        world.expanded = plan = extended(plan, 4 + more)
        state = live(world, slots=slots, lazy=0.4, seed=seed)
    assert state.served is not None and state.served.soup is not None
    # Deleted while the word of it was under way, or heard of; never anything else.
    assert world.deleted == state.retired
    for run in plan.runs:
        known = state.run(run.id)
        ended = known.trained_to if known.ended_early else 40
        assert known.last is not None and known.last.step == ended, "the last one is always kept"
        assert len(known.checkpoints) == ended // 10 if ingredients == "all" else True
        assert not known.duplicates
    for track in plan.variants:
        steps = {event.checkpoint.step for event in state.run(track.id).checkpoints}
        if isinstance(ingredients, list):
            assert steps >= {10, 30} & set(range(state.run(run_id_of(track.id)).trained_to + 1))


def test_an_extension_leaves_the_round_whose_members_were_retired(folder: Path) -> None:
    """Once all had ended nobody waited for it any more, so nothing kept them."""
    plan = simulated(3)
    world = World.at(folder / "extended", plan)
    first = live(world, slots=3)
    (left,) = [m.opened for m in first.merges.values() if m.opened.observe and m.soup is None]
    assert not all(first.is_known_checkpoint(member.name) for member in left.ingredients)
    world.expanded = extended(plan, 5)
    state = live(world, slots=3)
    fresh = live(World.at(folder / "fresh", world.expanded), slots=3)
    assert state.served is not None and fresh.served is not None
    assert state.served.soup == fresh.served.soup
    newer = [m for m in state.merges.values() if m.opened.observe and m.opened.merge > left.merge]
    assert state.merges[left.merge].soup is None and newer, "rounds go on after it"


def score(top1: float) -> Score:
    return Score(count=40, top1=top1, macro_f1=top1, nll=1.0, ece=0.0)


PLAN = simulated(2, epochs=4)
RUN = PLAN.runs[0].id


def checkpointed(step: int, top1: float | None, run: str = RUN) -> Checkpointed:
    made = Checkpoint(name=f"{run}/{step:08d}", attempt=1, step=step, sha256="a", num_bytes=1)
    return Checkpointed(run=run, checkpoint=made, score=None if top1 is None else score(top1))


def gone(*events: Any, ingredients: str | list[int] = "best", **sections: Any) -> set[int]:
    plan = simulated(2, epochs=4, soup={"ingredients": ingredients}, **sections)
    begun = Preflighted(facts=facts(plan))
    orders = list(retention.retire_orders(Moment(plan, fold([begun, *events]))))
    assert all(isinstance(order, RetireOrder) for order in orders)
    return {c.step for order in orders for c in order.checkpoints}


@pytest.mark.parametrize(
    ("ingredients", "expected"),
    [
        ("best", {10, 30}),
        ("last", {10, 20, 30}),
        ("all", set()),
        ("top-2", {10}),
        ([1, 3], set()),
        ([1], {30}),
    ],
)
def test_kept_is_what_ingredients_may_choose_and_the_last(
    ingredients: str | list[int], expected: set[int]
) -> None:
    curve = [(10, 0.1), (20, 0.9), (30, 0.8), (40, 0.5)]
    assert gone(*(checkpointed(s, t) for s, t in curve), ingredients=ingredients) == expected


def test_a_run_with_one_checkpoint_keeps_it() -> None:
    assert not gone(checkpointed(10, 0.1))


def test_an_unscored_checkpoint_goes_once_a_later_one_counts() -> None:
    assert gone(checkpointed(5, None), checkpointed(10, 0.5)) == {5}
    assert not gone(checkpointed(10, 0.5), checkpointed(15, None))


def test_a_stage_of_the_base_keeps_its_last_alone() -> None:
    base = {"base": {"trunk_epochs": 3}}
    plan = simulated(2, epochs=4, **base)
    ((stage,),) = (made.stages for made in resolve(plan, facts(plan)).plans)
    events = [checkpointed(s, 0.9 - s / 100, run=stage.id) for s in (10, 20, 30)]
    assert gone(*events, **base) == {10, 20}


def test_what_an_unfinished_merge_names_is_pinned() -> None:
    events = [checkpointed(10, 0.1), checkpointed(20, 0.9)]
    assert gone(*events) == {10}
    pinned = MergeOpened(
        merge="observe-c-0001",
        cohort="c",
        recipe="greedy",
        ingredients=(Ingredient(name=f"{RUN}/00000010", run=RUN, score=0.1),),
        observe=True,
        round=1,
    )
    assert not gone(*events, pinned)


def test_nothing_is_retired_before_preflight_or_while_a_retirement_is_open() -> None:
    assert [order.kind for order in due(Moment(PLAN, State()))] == ["preflight"]
