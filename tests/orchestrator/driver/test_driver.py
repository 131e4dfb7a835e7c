"""The driver: killed at any ledger write, the next one ends where the first one would have."""

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from orchestrator.commands.run import DONE, exit_code, is_finished
from orchestrator.config import Experiment
from orchestrator.driver import driver as driving
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.experiment.sweep import expand
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import FragileLedger, Killed, SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.storage.layout import FINISH, LEASE
from workers.types import AnyEvent, AnyOrder, ErrorClass, TasteOrder, TrainOrder

HOW = ("before", "torn", "after")
ERRORS: list[ErrorClass] = ["lost", "hang", "storage", "preempted", "error"]
FEW = settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
"""Whole lives of an experiment are slow to shrink."""


def soups(state: State) -> dict[str, tuple[str, ...]]:
    """Members of every soup in the store, in order of acceptance."""
    finals = [m for m in state.merges.values() if m.soup is not None and not m.opened.observe]
    return {m.opened.merge: m.soup.mix.names for m in finals if m.soup is not None}


def served(state: State) -> str | None:
    assert state.served is not None
    return state.served.soup


def outcome(state: State) -> Any:
    """What must not depend on who died when."""
    curves = {
        run: [(c.checkpoint.name, c.score) for c in known.checkpoints if c.score]
        for run, known in state.runs.items()
    }
    scores = {name: dict(of) for name, of in state.scores.items()}
    return served(state), soups(state), sorted(state.soups), scores, curves


def check(world: World, undisturbed: State) -> None:
    state = world.state()
    assert outcome(state) == outcome(undisturbed)
    assert exit_code(Moment(world.expanded, state)) == DONE
    assert is_finished(Moment(world.expanded, state))
    events = world.ledger().replay()
    assert [event.seq for event in events] == list(range(len(events)))
    counted = Counter(e.checkpoint.name for e in events if e.kind == "checkpoint")
    assert max(counted.values()) == 1, "no epoch counts twice"
    _nothing_is_performed_unordered(world, events)


def _nothing_is_performed_unordered(world: World, events: list[AnyEvent]) -> None:
    """`ordered` was in the ledger before the fleet heard of it, and no attempt was reused."""
    ordered = Counter((e.order, e.attempt) for e in events if e.kind == "ordered")
    assert max(ordered.values()) == 1
    assert set(world.performed) <= set(ordered)


def undisturbed(folder: Path, plan: ExpandedExperiment, **fleet: Any) -> State:
    return live(World.at(folder / "calm", plan), **fleet)


def appends(folder: Path, plan: ExpandedExperiment, **fleet: Any) -> int:
    world = World.at(folder / "counted", plan)
    ledger = FragileLedger(world.store, dies_at=-1, how="after")
    live(world, ledger, **fleet)
    return ledger.appends


# Killed


@pytest.mark.parametrize("how", HOW)
def test_a_driver_killed_at_any_ledger_write_loses_nothing(folder: Path, how: str) -> None:
    plan = simulated(2, epochs=2, base={"trunk_epochs": 1})
    calm = undisturbed(folder, plan)
    every = 3 if how == "torn" else 1
    for dies_at in range(1, appends(folder, plan) + 1, every):
        world = World.at(folder / f"{how}-{dies_at}", plan)
        with pytest.raises(Killed):
            live(world, FragileLedger(world.store, dies_at, how))
        live(world)
        check(world, calm)


def test_any_chain_of_deaths_on_any_fleet_ends_the_same(folder: Path) -> None:
    plan = simulated(3, epochs=2)
    calm = undisturbed(folder, plan)
    lives = itertools.count()

    @FEW
    @given(
        deaths=st.lists(st.tuples(st.integers(1, 30), st.sampled_from(HOW)), max_size=8),
        slots=st.integers(1, 4),
        seed=st.integers(0, 1000),
    )
    def holds(deaths: list[tuple[int, str]], slots: int, seed: int) -> None:
        world = World.at(folder / f"{next(lives)}", plan)
        for generation, (dies_at, how) in enumerate(deaths):
            ledger = FragileLedger(world.store, dies_at, how)
            with contextlib.suppress(Killed):
                live(world, ledger, slots=slots, lazy=0.5, seed=seed + generation)
                break
        if world.state().finished is None:
            live(world, slots=slots, lazy=0.5, seed=seed)
        check(world, calm)

    holds()


def test_checkpoints_completed_without_a_word_are_adopted(folder: Path) -> None:
    """The driver dies while two runs train on: no epoch of theirs is trained again."""
    world = World.at(folder, simulated(2, epochs=3))
    fleet = SimulatedFleet(world)
    mind = driver(world, fleet)
    mind._open()
    while not any(run.checkpoints for run in mind.state.runs.values()):
        mind._turn()
    for _ in range(20):
        fleet.events(0.0)
    world.store.delete(LEASE)
    again = SimulatedFleet(world)
    driver(world, again).run()
    starts = [o.start.step for o in again.submitted if isinstance(o, TrainOrder)]
    assert starts == [30, 30]
    epochs = Counter((e.run, e.checkpoint.step) for e in events_of(world, "checkpoint"))
    assert max(epochs.values()) == 1 and len(epochs) == 6


def events_of(world: World, kind: str) -> Iterator[Any]:
    return (event for event in world.ledger().replay() if event.kind == kind)


def test_a_zombies_checkpoints_are_never_adopted(folder: Path) -> None:
    """Workers of the dead driver train on under attempts the ledger no longer names."""
    plan = simulated(2, epochs=4)
    calm = undisturbed(folder, plan)
    world = World.at(folder, plan)
    zombies = SimulatedFleet(world)
    mind = driver(world, zombies)
    mind._open()
    while not any(run.checkpoints for run in mind.state.runs.values()):
        mind._turn()
    world.store.delete(LEASE)
    heirs = SimulatedFleet(world)
    heir = driver(world, heirs)
    heir.watch = lambda *_: zombies.events(0.0) and None
    heir.run()
    heir.finish()
    check(world, calm)
    by_zombies = {e.checkpoint.id for e in events_of(world, "checkpoint") if e.attempt == 1}
    opened_again = [e.seq for e in events_of(world, "opened")][1]
    late = [e for e in events_of(world, "checkpoint") if e.seq > opened_again and e.attempt == 1]
    assert by_zombies and not late


# Failing workers


def test_workers_that_die_now_and_then_change_nothing(folder: Path) -> None:
    plan = simulated(3, epochs=2)
    calm = undisturbed(folder, plan)
    lives = itertools.count()

    @FEW
    @given(seed=st.integers(0, 10_000), slots=st.integers(1, 3))
    def holds(seed: int, slots: int) -> None:
        def unlucky(order: AnyOrder, attempt: int) -> Mishap | None:
            chance = random.Random(f"{seed} {order.id} {attempt}")
            if attempt > 1 or chance.random() < 0.5:
                return None
            error = chance.choice(ERRORS)
            return Mishap(error, after=chance.randrange(5), unheard=chance.randrange(3))

        world = World.at(folder / f"{next(lives)}", plan, mishaps=unlucky)
        live(world, slots=slots, lazy=0.3, seed=seed)
        check(world, calm)

    holds()


def test_epochs_that_a_lost_worker_completed_are_not_trained_again(folder: Path) -> None:
    def dies(order: AnyOrder, attempt: int) -> Mishap | None:
        return (
            Mishap("lost", after=3, unheard=2) if order.kind == "train" and attempt == 1 else None
        )

    world = World.at(folder, simulated(2, epochs=4), mishaps=dies)
    fleet = SimulatedFleet(world)
    driver(world, fleet).run()
    starts = [o.start.step for o in fleet.submitted if isinstance(o, TrainOrder)]
    assert starts == [0, 0, 20, 20], "the second epoch was complete, though nobody had heard"


def test_out_of_memory_goes_on_with_half_the_micro_batch(folder: Path) -> None:
    def too_big(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TrainOrder):
            return None
        return Mishap("oom", after=1) if (order.micro_batch or 32) > 8 else None

    world = World.at(folder, simulated(2), mishaps=too_big)
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    sizes = {o.micro_batch for o in fleet.submitted if isinstance(o, TrainOrder)}
    assert sizes == {None, 16, 8}
    assert served(state) is not None
    assert {Moment(world.expanded, state).phase_of(run) for run in world.expanded.runs} == {"done"}


def test_a_corrupt_start_falls_back_to_the_older_checkpoint(folder: Path) -> None:
    """Attempt 1 dies at step 30; its checkpoint of step 20 turns out corrupt in attempt 2."""

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TrainOrder) or order.run_id != victim:
            return None
        if attempt == 1:
            return Mishap("lost", after=5)
        return Mishap("corrupt", checkpoint=order.start.id) if attempt == 2 else None

    plan = simulated(2, epochs=4, soup={"ingredients": "all"})
    victim = plan.runs[0].id
    calm = undisturbed(folder, plan)
    world = World.at(folder, plan, mishaps=breaks)
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    starts = [o.start.step for o in fleet.submitted if o.run_id == victim]  # type: ignore[union-attr]
    assert starts == [0, 20, 10]
    assert soups(state) == soups(calm) and served(state) == served(calm)


def test_a_last_checkpoint_found_corrupt_by_a_taste_is_trained_again(folder: Path) -> None:
    plan = simulated(3, epochs=2, soup={"ingredients": "last"}, merge={"mode": "off"})
    calm = undisturbed(folder, plan)
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if not isinstance(order, TasteOrder) or damaged:
            return None
        damaged.append(order.ingredients[-1].id)
        return Mishap("corrupt", checkpoint=damaged[0])

    world = World.at(folder, plan, mishaps=breaks)
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    again = [o for o in fleet.submitted if isinstance(o, TrainOrder)][-1]
    assert damaged and again.start.step < 20 and damaged[0].startswith(again.run.id)
    assert soups(state) == soups(calm) and served(state) == served(calm)


# Ends


def test_a_finish_request_midway_soups_what_is_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driving, "FINISH_POLL_S", 0.0)
    world = World.at(folder, simulated(3, epochs=6))
    fleet = SimulatedFleet(world)
    mind = driver(world, fleet)

    def ask(moment: Moment, *_: Any) -> None:
        state = moment.state
        if not state.finish_reason and sum(len(r.checkpoints) for r in state.runs.values()) > 3:
            world.store.write(FINISH, b"")

    mind.watch = ask
    state = mind.run()
    assert served(state) is not None
    assert all(len(run.checkpoints) < 6 for run in state.runs.values())
    assert {Moment(world.expanded, state).phase_of(run) for run in world.expanded.runs} == {
        "stopped"
    }
    assert not world.store.exists(FINISH)
    assert is_finished(Moment(world.expanded, mind.finish()))
    members = {name for names in soups(state).values() for name in names}
    assert members, "what was committed is in the soup"


def test_max_hours_end_training_and_make_the_soup(folder: Path) -> None:
    hours = 6 / 3600
    world = World.at(folder, simulated(3, epochs=50, fleet={"max_hours": hours}))
    state = live(world)
    assert state.finish_reason is not None and "max_hours" in state.finish_reason
    assert served(state) is not None


def test_training_that_ignores_its_grace_period_is_cut_off(folder: Path) -> None:
    """What it completed by then counts, heard or not."""
    world = World.at(folder, simulated(2, epochs=50, fleet={"max_hours": 6 / 3600}))
    fleet = SimulatedFleet(world)
    fleet.interrupt = lambda reason: None  # type: ignore[method-assign]
    state = driver(world, fleet).run()
    assert {e.run for e in events_of(world, "cancelled")} == {run.id for run in world.expanded.runs}
    assert served(state) is not None and not state.open


def test_a_stopped_driver_says_so_and_the_next_goes_on(folder: Path) -> None:
    plan = simulated(2, epochs=3)
    calm = undisturbed(folder, plan)
    world = World.at(folder, plan)
    mind = driver(world, SimulatedFleet(world))

    def stop(moment: Moment, *_: Any) -> None:
        if moment.state.runs:
            mind.stop_reason = "SIGINT received"

    mind.watch = stop
    state = mind.run()
    assert state.stopped is not None and not is_finished(Moment(plan, state))
    world.store.delete(LEASE)
    live(world)
    check(world, calm)


def test_a_finished_experiment_has_nothing_left_to_do(folder: Path) -> None:
    world = World.at(folder)
    live(world)
    before = len(world.performed)
    assert is_finished(Moment(world.expanded, world.state()))
    live(world)
    assert len(world.performed) == before


# Extended


def extended(plan: ExpandedExperiment, num_runs: int) -> ExpandedExperiment:
    tree = plan.experiment.model_dump(mode="json")
    tree["sweep"]["seeds"] = num_runs
    experiment = Experiment.model_validate(tree)
    return ExpandedExperiment(experiment, expand(experiment), plan.ranks)


def test_an_extended_experiment_runs_the_new_runs_alone(folder: Path) -> None:
    plan = simulated(2)
    world = World.at(folder, plan)
    first = live(world)
    old = {run.id for run in plan.runs}
    world.expanded = extended(plan, 5)
    fleet = SimulatedFleet(world)
    mind = driver(world, fleet)
    state = mind.run()
    trained = {o.run_id for o in fleet.submitted if isinstance(o, TrainOrder)}
    assert trained == {run.id for run in world.expanded.runs} - old and len(trained) == 3
    assert not [order for order in fleet.submitted if order.kind in ("preflight", "base")]
    fresh = live(World.at(folder / "fresh", extended(plan, 5)))
    assert served(state) == served(fresh)
    assert soups(fresh).items() <= soups(state).items()
    assert soups(first).items() <= soups(state).items(), "the old soups are still known"
    assert is_finished(Moment(world.expanded, mind.finish()))


def test_an_extension_of_a_fleet_that_failed_serves_a_soup_after_all(folder: Path) -> None:
    plan = simulated(2)
    old = {run.id for run in plan.runs}

    def diverges(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged") if order.run_id in old else None

    world = World.at(folder, plan, mishaps=diverges)
    assert served(live(world)) is None
    world.expanded = extended(plan, 4)
    assert served(live(world)) is not None


def test_every_slot_count_and_interleaving_gives_the_same_soup(folder: Path) -> None:
    plan = simulated(4, epochs=2)
    calm = undisturbed(folder, plan, slots=1)
    for slots, lazy in itertools.product((1, 2, 5), (0.0, 0.6)):
        world = World.at(folder / f"{slots}-{lazy}", plan)
        live(world, slots=slots, lazy=lazy, seed=slots)
        check(world, calm)
