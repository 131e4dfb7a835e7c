"""Questions that are measured: asked, answered and replayed like any other, and never kept."""

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule import final_merges
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import FragileLedger, Killed, live
from tests.simulator.world import Mishap, World
from workers.types import AnyOrder, Mix

ASKING = "tests.simulator.probe_recipe:ProbeRecipe"
BASE = "tests.simulator.probe_recipe:OnlyBase"


def plan(*recipes: Any, runs: int = 3, **sections: Any) -> ExpandedExperiment:
    soup = {"recipes": ["best", *recipes], **sections.pop("soup", {})}
    return simulated(runs, epochs=1, soup=soup, merge={"mode": "off"}, **sections)


def soups(state: State) -> dict[str, Mix]:
    return {m.opened.label: m.soup.mix for m in state.merges.values() if m.soup is not None}


def test_everything_a_recipe_asks_is_answered_once(folder: Path) -> None:
    world = World.at(folder, plan({ASKING: {"steps": 4}}))
    state = live(world)
    (asking,) = [m for m in state.merges.values() if m.opened.label == "ProbeRecipe"]
    assert asking.soup is not None and len(asking.soup.mix.weights) == 4
    assert (
        asking.num_measurements == 5 and asking.measured_samples == 32 and asking.measured_s == 5.0
    )
    assert state.measured == {} and asking.answers == (), "nothing long is kept"
    kinds = [event.kind for event in world.ledger().replay()]
    assert kinds.count("measured") == 5
    assert not any(e.kind == "answered" and e.answer for e in world.ledger().replay()[:-30])


@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_a_driver_killed_anywhere_in_a_recipe_that_measures_ends_the_same(
    folder: Path, how: str
) -> None:
    asking = plan({ASKING: {"steps": 3}}, {"model_stock": {}}, runs=2)
    calm = World.at(folder / "calm", asking)
    ledger = FragileLedger(calm.store, dies_at=-1, how="after")
    expected = live(calm, ledger)
    for dies_at in range(10, ledger.appends + 1, 2):
        world = World.at(folder / f"{how}-{dies_at}", asking)
        with pytest.raises(Killed):
            live(world, FragileLedger(world.store, dies_at, how))
        state = live(world)
        assert soups(state) == soups(expected) and state.measured == {}
        assert state.served is not None and state.served.soup == expected.served.soup  # type: ignore[union-attr]


def test_two_recipes_that_ask_the_same_share_the_answer(folder: Path) -> None:
    world = World.at(folder, plan("model_stock", {ASKING: {"steps": 0}}))
    state = live(world)
    geometries = [order for order, _ in world.performed if order.startswith("geometry-")]
    assert len(geometries) == 1
    assert [m.num_measurements for m in state.merges.values()] == [0, 1, 1]


@pytest.mark.parametrize("kind", ["geometry-", "gradient-"])
def test_a_measurement_that_is_given_up_ends_its_recipe_and_no_other(
    folder: Path, kind: str
) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("refused", message="no") if order.id.startswith(kind) else None

    state = live(World.at(folder, plan("uniform", ASKING), mishaps=breaks))
    assert set(soups(state)) == {"best", "uniform"} and state.served is not None
    (given_up,) = [m.opened.merge for m in state.merges.values() if m.soup is None]
    reason = final_merges.merge_failure(state, state.merges[given_up])
    assert reason is not None and reason.startswith(f"its {kind[:-1]} failed: refused: no")


def test_a_worker_lost_while_measuring_costs_that_measurement_alone(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        lost = order.id.startswith(("gradient-", "geometry-")) and attempt == 1
        return Mishap("lost", after=1) if lost else None

    calm = live(World.at(folder / "calm", plan(ASKING)))
    state = live(World.at(folder / "lossy", plan(ASKING), mishaps=breaks))
    assert soups(state) == soups(calm)


def test_the_base_alone_is_tasted_scored_and_compared_like_any_soup(folder: Path) -> None:
    world = World.at(folder, plan(BASE))
    state = live(world)
    mix = soups(state)["OnlyBase"]
    assert mix.single is not None and mix.single.startswith("base/")
    (name,) = [name for name in state.soups if "OnlyBase" in name]
    assert set(state.scores[name]) == {"val", "test", "ood:sketch"}


def test_an_anytime_soup_that_measures_never_takes_a_training_slot(folder: Path) -> None:
    rounds = {"mode": "observe", "method": ASKING}
    watched = simulated(2, epochs=3, soup={"recipes": ["best"]}, merge=rounds)
    world = World.at(folder, watched)
    state = live(world, slots=1)
    assert state.served is not None
    performed = [order for order, _ in world.performed]
    assert any(order.startswith("observe-gradient-") for order in performed)
    assert not any(order.startswith(("gradient-", "geometry-")) for order in performed)


def test_hundreds_of_steps_leave_driver_and_ledger_light(folder: Path) -> None:
    world = World.at(folder, plan({ASKING: {"steps": 300}}), writes=False)
    began = time.process_time()
    state = live(world)
    seconds = time.process_time() - began
    orders = [order for order, _ in world.performed if order.startswith("gradient-")]
    assert len(orders) == len(set(orders)) == 300 and max(map(len, orders)) < 60
    assert state.measured == {}
    text = sum(path.stat().st_size for path in (folder / "store" / "ledger").iterdir())
    assert text < 300 * 4_000
    assert seconds < 60, f"{seconds:.0f} s for 300 steps"


def batchnorm(world: World) -> None:
    """As if the models had BatchNorm."""
    original = world._preflight

    def with_batchnorm(order: Any, attempt: int) -> Any:
        for event in original(order, attempt):
            if event.kind == "preflighted":
                models = {
                    key: model.model_copy(update={"has_batchnorm": True})
                    for key, model in event.facts.models.items()
                }
                facts = event.facts.model_copy(update={"models": models})
                event = event.model_copy(update={"facts": facts})
            yield event

    world._preflight = with_batchnorm  # type: ignore[method-assign]


def test_compare_makes_every_soup_under_every_policy_and_best_once(folder: Path) -> None:
    world = World.at(folder, plan("uniform", "model_stock", soup={"batchnorm": "compare"}))
    batchnorm(world)
    state = live(world)
    policies = ("recompute", "average", "best")
    labels = [f"{recipe}@{p}" for recipe in ("uniform", "model_stock") for p in policies]
    assert [m.opened.label for m in state.merges.values()] == ["best", *labels]
    assert len(state.soups) == 7 and state.served is not None
    (cohort,) = {m.opened.cohort.partition("@")[0] for m in state.merges.values()}
    mixes = {mix.key for label, mix in soups(state).items() if label != "best"}
    tasted = [order for order, _ in world.performed]
    wanted = [f"taste-{cohort}@{policy}-{mix}-full" for policy in policies for mix in mixes]
    assert len(mixes) == 2 and [tasted.count(order) for order in wanted] == [1] * 6, (
        "a score under one policy is none of another's"
    )
    assert len([o for o, _ in world.performed if o.startswith("geometry-")]) == 1
    assert {soup.partition("-")[0] for soup in state.soups} == {
        "soup/best",
        *(f"soup/{x}" for x in labels),
    }


def test_models_without_batchnorm_are_not_compared(folder: Path) -> None:
    state = live(World.at(folder, plan("uniform", soup={"batchnorm": "compare"})))
    assert set(soups(state)) == {"best", "uniform"}


def test_a_recipe_added_to_a_finished_experiment_retrains_nothing(folder: Path) -> None:
    first = World.at(folder, plan("uniform"))
    live(first)
    more = World(plan("uniform", "model_stock"), first.store)
    state = live(more)
    assert not any(
        order.startswith(("train-", "base-", "preflight")) for order, _ in more.performed
    )
    assert set(soups(state)) == {"best", "uniform", "model_stock"}
    assert state.finished is not None and state.served is not None
