"""The schedule: pure rules over what is, asked twice they answer the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import schedule
from orchestrator.commands.run import PARTLY, exit_code
from orchestrator.experiment.resolved import ExpandedExperiment, resolve
from orchestrator.schedule import serving
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.simulator.experiment import facts, simulated, then
from tests.simulator.simulator import SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.types import (
    AnyEvent,
    AnyOrder,
    BaseOrder,
    BaseReady,
    Checkpoint,
    Checkpointed,
    Failed,
    FinishRequested,
    GaveUp,
    Ordered,
    Preflighted,
    Served,
    TrainOrder,
)

PLAN = simulated(3)


def base_of(plan: ExpandedExperiment) -> AnyEvent:
    resolved = resolve(plan, FACTS)
    return BaseReady(checkpoint=Checkpoint(name=resolved.plans[0].final, sha256="a", num_bytes=1))


FACTS = facts(PLAN)
BEGUN = fold([Preflighted(facts=FACTS), base_of(PLAN)])


def kinds(orders: tuple[AnyOrder, ...]) -> list[str]:
    return [order.kind for order in orders]


def trained_to(run: str, step: int) -> AnyEvent:
    made = Checkpoint(name=f"{run}/{step:08d}", attempt=1, step=step, sha256="a", num_bytes=1)
    return Checkpointed(run=run, checkpoint=made, score=None)


def ordered(order: AnyOrder) -> AnyEvent:
    return Ordered(order=order.id, run=order.run_id, attempt=1, what=order.kind, due_since=0.0)


# What is due


def test_preflight_is_the_first_order_and_alone() -> None:
    assert kinds(schedule.due(Moment(PLAN, State()))) == ["preflight"]


def test_bases_come_before_runs() -> None:
    state = fold([Preflighted(facts=FACTS)])
    assert kinds(schedule.due(Moment(PLAN, state))) == ["base"]


def test_runs_begin_at_the_base_and_go_on_from_their_newest_checkpoint() -> None:
    state = then(BEGUN, [trained_to(PLAN.runs[1].id, 10)])
    orders = schedule.due(Moment(PLAN, state))
    assert [order.run_id for order in orders] == [run.id for run in PLAN.runs]
    starts = [order.start for order in orders if isinstance(order, TrainOrder)]
    assert starts[0] == next(iter(state.bases.values()))
    assert starts[1].step == 10
    assert all(order.stop_step == 20 for order in orders if isinstance(order, TrainOrder))


def test_what_is_held_is_not_due() -> None:
    first, second, third = schedule.due(Moment(PLAN, BEGUN))
    state = then(BEGUN, [ordered(first)])
    assert schedule.due(Moment(PLAN, state)) == (second, third)
    lost = Failed(order=first.id, run=first.run_id, attempt=1, error="lost", message="died")
    state = then(state, [lost])
    assert schedule.due(Moment(PLAN, state)) == (second, third), "undecided"
    (decision,) = schedule.decisions(Moment(PLAN, state), now=0.0)
    state = then(state, [decision])
    assert schedule.due(Moment(PLAN, state)) == (second, third), "in backoff"
    gave_up = GaveUp(order=first.id, run=first.run_id, reason="enough")
    assert schedule.due(Moment(PLAN, then(state, [gave_up]))) == (second, third)


def test_a_smaller_micro_batch_stays_with_its_run() -> None:
    first = schedule.due(Moment(PLAN, BEGUN))[0]
    oom = Failed(order=first.id, run=first.run_id, attempt=1, error="oom", message="full")
    state = then(BEGUN, [ordered(first), oom])
    state = then(state, schedule.decisions(Moment(PLAN, state), 0.0))
    state = then(state, schedule.decisions(Moment(PLAN, state), 1e12))
    again = schedule.due(Moment(PLAN, state))[0]
    assert isinstance(again, TrainOrder) and again.id == first.id and again.micro_batch == 16


def facts_of(moment: Moment) -> list[AnyEvent]:
    """Decisions without the time at which they were taken."""
    events = schedule.decisions(moment, 0.0)
    return [event.model_copy(update={"time": 0.0}) for event in events]


def test_asked_twice_the_schedule_answers_the_same(folder: Path) -> None:
    """Level-triggered: at every moment the driver, which keeps an index of the runs up to date,
    finds due what one finds that begins with the ledger."""
    world = World.at(folder, simulated(3, base={"probe_epochs": 1, "trunk_epochs": 2}))
    mind = driver(world, SimulatedFleet(world))

    def ask(moment: Moment, *_: Any) -> None:
        afresh = Moment(world.expanded, world.state())
        assert schedule.due(moment) == schedule.due(afresh)
        assert facts_of(moment) == facts_of(afresh)
        if moment.is_resolved:
            assert moment.represented_variants == afresh.represented_variants
        ids = [order.id for order in schedule.due(moment)]
        assert len(ids) == len(set(ids))

    mind.watch = ask
    mind.run()


def test_probe_then_trunk_then_the_base_they_made(folder: Path) -> None:
    plan = simulated(2, base={"probe_epochs": 1, "trunk_epochs": 2})
    world = World.at(folder, plan)
    fleet = SimulatedFleet(world)
    driver(world, fleet).run()
    early = [order for order in fleet.submitted if order.kind in ("base", "train")][:4]
    assert [order.kind for order in early] == ["base", "train", "train", "base"]
    probe, trunk, final = early[1:]
    assert isinstance(probe, TrainOrder) and probe.run.role == "probe"
    assert isinstance(trunk, TrainOrder) and trunk.start.name == f"{probe.run.id}/00000010"
    assert isinstance(final, BaseOrder) and final.source is not None
    assert final.source.name == f"{trunk.run.id}/00000020"


# Ends


def served(state: State) -> str | None:
    assert state.served is not None
    return state.served.soup


def test_a_failed_run_never_takes_the_fleet_down(folder: Path) -> None:
    bad = PLAN.runs[1].id

    def diverges(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged", after=2) if order.run_id == bad else None

    state = live(World.at(folder, PLAN, mishaps=diverges))
    assert state.run(bad).failed is not None
    assert served(state) is not None
    members = [m.soup.mix.names for m in state.merges.values() if m.soup and not m.opened.observe]
    assert all(not name.startswith(bad) for names in members for name in names)
    assert exit_code(Moment(PLAN, state)) == PARTLY


def test_when_all_runs_fail_nothing_is_served_and_it_is_said(folder: Path) -> None:
    def diverges(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged", after=2) if order.kind == "train" else None

    world = World.at(folder, PLAN, mishaps=diverges)
    state = live(world)
    assert served(state) is None
    assert [e for e in world.ledger().replay() if isinstance(e, Served)]
    assert exit_code(Moment(PLAN, state)) == PARTLY


def test_the_last_run_failing_does_not_end_the_experiment_early(folder: Path) -> None:
    """Nothing is in flight then, and the soup still has to be made."""
    last = PLAN.runs[-1].id

    def diverges(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged", after=4) if order.run_id == last else None

    for slots in (1, 2, 3):
        state = live(World.at(folder / str(slots), PLAN, mishaps=diverges), slots=slots)
        assert served(state) is not None


def test_a_base_that_fails_fails_its_runs(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("error") if order.kind == "base" else None

    state = live(World.at(folder, PLAN, mishaps=breaks))
    assert served(state) is None
    assert "its base failed" in (Moment(PLAN, state).failure_of(PLAN.runs[0]) or "")
    assert {Moment(PLAN, state).phase_of(run) for run in PLAN.runs} == {"failed"}
    assert exit_code(Moment(PLAN, state)) == PARTLY


def test_a_trunk_that_fails_fails_its_runs(folder: Path) -> None:
    plan = simulated(2, base={"trunk_epochs": 2})

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged", after=1) if order.kind == "train" else None

    state = live(World.at(folder, plan, mishaps=breaks))
    assert served(state) is None
    assert "trunk" in (Moment(plan, state).failure_of(plan.runs[0]) or "")


def test_a_base_of_one_model_fails_the_runs_of_that_model_alone(folder: Path) -> None:
    plan = simulated(1, sweep={"space": {"model.name": ["test_vit", "test_resnet"]}, "seeds": 2})
    bad = resolve(plan, facts(plan)).plans[0]

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return (
            Mishap("refused") if isinstance(order, BaseOrder) and order.name == bad.fresh else None
        )

    state = live(World.at(folder, plan, mishaps=breaks))
    assert served(state) is not None
    statuses = [Moment(plan, state).phase_of(run) for run in plan.runs]
    assert sorted(statuses) == ["done", "done", "failed", "failed"]


def test_a_preflight_that_refuses_ends_everything_with_its_words(folder: Path) -> None:
    def refuses(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("refused", message="class 7 is empty") if order.kind == "preflight" else None

    world = World.at(folder, PLAN, mishaps=refuses)
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    assert "class 7 is empty" in (serving.preflight_refusal(state) or "")
    assert [order.kind for order in fleet.submitted] == ["preflight"]


def test_scores_and_comparison_that_are_given_up_do_not_keep_the_soup(folder: Path) -> None:
    for kind in ("score", "compare", "retire"):

        def breaks(order: AnyOrder, attempt: int, kind: str = kind) -> Mishap | None:
            return Mishap("error") if order.kind == kind else None

        state = live(World.at(folder / kind, PLAN, mishaps=breaks))
        assert served(state) is not None, kind
        assert exit_code(Moment(PLAN, state)) == PARTLY


# Deadlines


def test_max_hours_ask_to_finish_once(folder: Path) -> None:
    plan = simulated(3, fleet={"max_hours": 0.5})
    state = replace(BEGUN, opened_at=1000.0)
    assert not list(serving.finish_decisions(Moment(plan, state), 1000.0 + 1799))
    (event,) = serving.finish_decisions(Moment(plan, state), 1000.0 + 1800)
    assert isinstance(event, FinishRequested) and "max_hours" in event.reason
    assert not list(serving.finish_decisions(Moment(plan, then(state, [event])), 1e9))


def test_after_a_finish_request_no_training_is_due() -> None:
    state = then(BEGUN, [FinishRequested(reason="enough")])
    assert not any(order.kind == "train" for order in schedule.due(Moment(PLAN, state)))


def test_a_finish_request_before_any_base_serves_nothing(folder: Path) -> None:
    state = then(fold([Preflighted(facts=FACTS)]), [FinishRequested(reason="enough")])
    (event,) = schedule.decisions(Moment(PLAN, state), 0.0)
    assert event.kind == "served" and event.soup is None
    assert schedule.is_over(Moment(PLAN, then(state, [event])))
