"""Folds, early ends, trajectories and stacking through the machine, and what preflight judges."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.experiment.resolved import ExpandedExperiment, resolve, stage_train
from orchestrator.report.results import collect_results
from orchestrator.schedule import preparation
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.driver.test_driver import soups
from tests.simulator.experiment import facts, simulated
from tests.simulator.simulator import SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.config.train import TrainConfig
from workers.types import (
    AnyOrder,
    CompareOrder,
    PreflightOrder,
    TasteOrder,
    TrainOrder,
    ema_id,
    run_id_of,
)

REDUCERS = {"folds": 3}
STACKS = {"stacking": True}


def compared(world: World) -> tuple[State, CompareOrder]:
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    (order,) = [order for order in fleet.submitted if isinstance(order, CompareOrder)]
    return state, order


def owners(group: tuple[str, ...]) -> list[str]:
    return [member.partition("/")[0] for member in group]


# Folds


def test_a_run_of_a_fold_learns_from_the_rest(folder: Path) -> None:
    plan = simulated(1, data={"folds": 6})
    resolved = resolve(plan, facts(plan))
    assert resolved.preflight.folds == (54, 54, 53, 53, 53, 53)
    assert [resolved.num_images[run.id] for run in plan.runs[1:3]] == [266, 267]
    assert {resolved.num_steps[run.id] for run in plan.runs} == {2 * 9}, "10 without folds"
    state = live(World.at(folder, plan))
    assert {state.run(run.id).trained_to for run in plan.runs} == {18}
    rows = collect_results(Moment(plan, state))["runs"]
    assert [row["fold"] for row in rows] == [0, 1, 2, 3, 4, 5]


# Stacking


def test_with_folds_a_group_is_a_setting_in_order_of_its_folds(folder: Path) -> None:
    plan = simulated(2, data=REDUCERS, train={"model_ema_decay": 0.9}, ensemble=STACKS)
    state, order = compared(World.at(folder, plan))
    first, second = plan.runs[:3], plan.runs[3:]
    expected = [
        [run.id for run in first],
        [ema_id(run.id) for run in first],
        [run.id for run in second],
        [ema_id(run.id) for run in second],
    ]
    assert sorted(owners(group) for group in order.stacking) == sorted(expected)
    fold_of = {run.id: run.fold for run in plan.runs}
    assert order.folds == {
        member: fold_of[run_id_of(member.partition("/")[0])]
        for group in order.stacking
        for member in group
    }
    stacked = next(
        e for e in collect_results(Moment(plan, state))["ensembles"] if e["kind"] == "stacking"
    )
    assert stacked["fitted_on"] == "out of fold" and set(stacked["scores"]) >= {"val", "test"}


def test_a_setting_that_lost_a_fold_is_in_no_group(folder: Path) -> None:
    plan = simulated(2, data=REDUCERS, ensemble=STACKS)
    bad = plan.runs[1].id

    def diverges(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged") if order.run_id == bad else None

    _, order = compared(World.at(folder, plan, mishaps=diverges))
    assert [owners(group) for group in order.stacking] == [[run.id for run in plan.runs[3:]]]
    assert len(order.members) == 5, "soft voting takes all that there are"


def test_without_folds_a_group_is_a_run_and_val_has_no_score(folder: Path) -> None:
    plan = simulated(3, ensemble=STACKS)
    state, order = compared(World.at(folder, plan))
    assert [owners(group) for group in order.stacking] == [[run.id] for run in plan.runs]
    assert order.folds == {}
    stacked = next(
        e for e in collect_results(Moment(plan, state))["ensembles"] if e["kind"] == "stacking"
    )
    assert stacked["fitted_on"] == "val" and "val" not in stacked["scores"]


@pytest.mark.parametrize("sections", [{}, {"ensemble": STACKS, "sweep": {"seeds": 1}}])
def test_nothing_is_stacked_unasked_or_alone(folder: Path, sections: dict[str, Any]) -> None:
    _, order = compared(World.at(folder, simulated(2, **sections)))
    assert order.stacking == () and order.folds == {}


def test_comparisons_made_before_stacking_are_still_known() -> None:
    order = CompareOrder(best_single="a/1-1", soups=("s",), members=("a/1-1",), splits=("val",))
    assert order.key == "2a4a9c4afdcb"
    assert order.model_copy(update={"stacking": (("a/1-1",),)}).key != order.key


# Early ends


def patient(folder: Path, **options: Any) -> tuple[World, State]:
    plan = simulated(4, epochs=6, train={"patience": 1}, soup={"ingredients": "last"})
    world = World.at(folder, plan, **options)
    return world, live(world)


def test_a_run_whose_patience_is_over_is_done(folder: Path) -> None:
    world, state = patient(folder)
    plan = world.expanded
    early = [run for run in plan.runs if state.run(run.id).ended_early]
    assert early and all(state.run(run.id).trained_to < 60 for run in early)
    assert all(Moment(plan, state).is_trained(run) for run in plan.runs)
    assert {Moment(plan, state).phase_of(run) for run in plan.runs} == {"done"}
    for row in collect_results(Moment(plan, state))["runs"]:
        known = state.run(row["id"])
        assert (row["steps"], row["epochs"]) == (known.trained_to, known.trained_to // 10)
        assert row["ended_early"] == known.ended_early and row["status"] == "done"
    assert len([id_ for id_, attempt in world.performed if id_.startswith("train-")]) == 4


def test_a_corrupt_last_checkpoint_of_an_early_end_is_trained_again(folder: Path) -> None:
    _, calm = patient(folder / "calm")
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TasteOrder) or damaged or order.observe:
            return None
        ended = [c for c in order.ingredients if c.step < 60]
        damaged.extend(checkpoint.id for checkpoint in ended[:1])
        return Mishap("corrupt", checkpoint=damaged[0]) if damaged else None

    world, state = patient(folder / "damaged", mishaps=breaks)
    assert damaged
    run = damaged[0].partition("/")[0]
    again = [id_ for id_, _ in world.performed if id_.startswith(f"train-{run}")]
    assert len(again) == 2
    assert state.run(run).ended_early and state.run(run).trained_to == calm.run(run).trained_to
    assert soups(state) == soups(calm)


# Trajectories


def test_a_single_run_gives_its_snapshots(folder: Path) -> None:
    plan = simulated(1, epochs=6, soup={"ingredients": [2, 4, 6]})
    state = live(World.at(folder, plan))
    (run,) = plan.runs
    finals = [m.opened for m in state.merges.values() if not m.opened.observe]
    assert all(
        [each.name for each in opened.ingredients]
        == [f"{run.id}/000000{step}" for step in (20, 40, 60)]
        for opened in finals
    )
    assert state.served is not None and state.served.soup is not None
    known = collect_results(Moment(plan, state))
    assert known["runs"][0]["status"] == "done" and known["best_single"]["run"] == run.id
    assert [len(soup["decisions"]) for soup in known["soups"]] == [3, 3, 3]


def test_a_run_that_ended_before_its_first_snapshot_gives_its_last(folder: Path) -> None:
    plan = simulated(4, epochs=6, train={"patience": 1}, soup={"ingredients": [6]})
    state = live(World.at(folder, plan))
    greedy = next(m.opened for m in state.merges.values() if not m.opened.observe)
    steps = {each.run: int(each.name.partition("/")[2]) for each in greedy.ingredients}
    assert steps == {run.id: state.run(run.id).trained_to for run in plan.runs}
    assert min(steps.values()) < 60


# Preflight and stages


def checked_configs(plan: ExpandedExperiment) -> list[tuple[str, TrainConfig]]:
    order = preparation.preflight_order(plan)
    assert isinstance(order, PreflightOrder)
    return list(order.train_configs)


def test_a_sweep_of_what_needs_no_judging_asks_nothing() -> None:
    assert checked_configs(simulated(1, sweep={"space": {"train.lr": [0.1, 0.2]}})) == []


def test_each_setting_that_needs_judging_is_asked_once_for_each_model() -> None:
    unfreeze = [{"epoch": 0, "modules": ["head"]}, {"epoch": 7, "modules": ["all"]}]
    space = {
        "train.lr": [0.1, 0.2],
        "train.aa": [None, "rand-m7"],
        "train.layer_decay": [0.7, 0.8],
        "model.name": ["test_vit", "test_resnet"],
    }
    train = {"epochs": 9, "unfreeze": unfreeze, "lr": 0.3}
    asked = checked_configs(simulated(1, sweep={"space": space}, train=train))
    assert len(asked) == 4 and len({key for key, _ in asked}) == 2
    for _, section in asked:
        assert TrainConfig.model_validate(section.model_dump()) == section
        assert section.lr == TrainConfig().lr and section.layer_decay is not None
        assert [each.epoch for each in section.unfreeze] == [0, 7]


def test_a_stage_is_judged_as_it_trains() -> None:
    plan = simulated(
        1, base={"probe_epochs": 1}, train={"aa": "rand-m7"}, sweep={"space": {"train.aa": [None]}}
    )
    assert [section.aa for _, section in checked_configs(plan)] == ["rand-m7"]


def test_a_stage_has_nothing_that_judges_parts_or_averages_a_run() -> None:
    train = TrainConfig(
        epochs=9,
        warmup_epochs=3,
        sched="plateau",
        patience=2,
        model_ema_decay=0.9,
        unfreeze=[{"epoch": 0, "modules": "head"}],
        aa="rand-m7",
    )
    found = stage_train(train, 2)
    assert TrainConfig.model_validate(found.model_dump()) == found
    assert found == TrainConfig(epochs=2, warmup_epochs=1, sched="none", aa="rand-m7")
    assert stage_train(TrainConfig(epochs=9), 2) == TrainConfig(epochs=2)


# Several architectures


def test_cohorts_of_several_architectures_end_in_one_served_soup(folder: Path) -> None:
    space = {"model.name": ["test_vit", "test_resnet"], "model.head": ["linear", "se"]}
    plan = simulated(1, sweep={"space": space, "seeds": 2}, ensemble=STACKS)
    state, order = compared(World.at(folder, plan))
    known = collect_results(Moment(plan, state))
    assert [cohort["name"] for cohort in known["cohorts"]] == [
        "test_vit",
        "test_vit se head",
        "test_resnet",
        "test_resnet se head",
    ]
    assert len(known["soups"]) == 12 and len(order.members) == len(order.stacking) == 8
    best = max(soup["scores"]["val"]["top1"] for soup in known["soups"])
    served = next(soup for soup in known["soups"] if soup["id"] == known["served"])
    assert served["scores"]["val"]["top1"] == best


def test_an_order_of_a_moving_average_is_never_given(folder: Path) -> None:
    world = World.at(folder, simulated(2, train={"model_ema_decay": 0.9}))
    fleet = SimulatedFleet(world)
    driver(world, fleet).run()
    assert all(o.run.role == "member" for o in fleet.submitted if isinstance(o, TrainOrder))
