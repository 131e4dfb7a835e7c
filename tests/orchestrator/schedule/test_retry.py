"""The failure policy, row by row."""

import itertools
from pathlib import Path

import pytest

from orchestrator.schedule import retry
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.simulator.experiment import facts, simulated, then
from tests.simulator.simulator import live
from tests.simulator.world import Mishap, World
from workers.types import (
    AnyEvent,
    AnyOrder,
    BackoffOver,
    Checkpoint,
    Checkpointed,
    ErrorClass,
    Failed,
    GaveUp,
    Opened,
    Ordered,
    Preflighted,
    RetryDecided,
    Revived,
)

PROGRAM = simulated(2)
RUN = PROGRAM.runs[0]
ORDER = f"train-{RUN.id}-00000020"


def failing(error: ErrorClass, times: int, run: str | None = RUN.id) -> tuple[State, AnyEvent]:
    """The state before the last decision, and that decision."""
    state, decision = fold([Preflighted(facts=facts(PROGRAM))]), None
    for attempt in range(1, times + 1):
        who = {"order": ORDER, "run": run, "attempt": attempt, "time": 100.0 * attempt}
        state = then(
            state,
            [
                Ordered(**who, what="train", due_since=0.0),
                Failed(**who, error=error, message="it broke"),
            ],
        )
        (decision,) = retry.retry_decisions(Moment(PROGRAM, state), now=0.0)
        before, state = state, then(state, [decision])
    assert decision is not None
    return before, decision


@pytest.mark.parametrize(
    ("error", "retries", "pauses"),
    [
        ("refused", 0, []),
        ("lost", 3, [1.0, 2.0, 4.0]),
        ("hang", 3, [1.0, 2.0, 4.0]),
        ("corrupt", 3, [0.0, 0.0, 0.0]),
        ("diverged", 0, []),
        ("error", 1, [1.0]),
    ],
)
def test_each_error_has_its_retries_and_pauses(
    error: ErrorClass, retries: int, pauses: list[float]
) -> None:
    seen = [failing(error, times)[1] for times in range(1, retries + 1)]
    assert [e.after_s for e in seen if isinstance(e, RetryDecided)] == pauses
    _, last = failing(error, retries + 1)
    assert isinstance(last, GaveUp)
    assert "it broke" in last.reason and error in last.reason
    assert last.run == RUN.id


def test_a_preempted_attempt_is_nobodys_fault() -> None:
    _, decision = failing("preempted", 50)
    assert isinstance(decision, RetryDecided) and decision.after_s == 0.0


def test_pauses_are_bounded() -> None:
    patient = simulated(2, fleet={"max_failures": 40})
    state = State(failures={ORDER: tuple(Failed(error="lost", message="x") for _ in range(30))})
    decision = retry.decide(Moment(patient, state), ORDER, Failed(error="lost", message="x"))
    assert isinstance(decision, RetryDecided) and decision.after_s == retry.LONGEST_PAUSE_S


def test_failures_of_another_kind_do_not_count() -> None:
    mixed = tuple(Failed(error=e, message="x") for e in ("lost", "lost", "lost", "hang"))
    decision = retry.decide(Moment(PROGRAM, State(failures={ORDER: mixed})), ORDER, mixed[-1])
    assert isinstance(decision, RetryDecided) and decision.after_s == 1.0


def test_storage_is_waited_for_with_growing_pauses_until_the_patience_is_over() -> None:
    state = fold([Preflighted(facts=facts(PROGRAM))])
    pauses, now, hours = [], 0.0, PROGRAM.experiment.fleet.storage_patience
    for attempt in itertools.count(1):
        who = {"order": ORDER, "run": RUN.id, "attempt": attempt, "time": now}
        failed = Failed(**who, error="storage", message="no route to host")
        state = then(state, [Ordered(**who, what="train", due_since=0.0), failed])
        (decision,) = retry.retry_decisions(Moment(PROGRAM, state), now=now)
        if isinstance(decision, GaveUp):
            break
        assert isinstance(decision, RetryDecided)
        assert "no route to host" in decision.reason and f"{hours:g} h" in decision.reason
        pauses.append(decision.after_s)
        state = then(state, [decision, BackoffOver(order=ORDER)])
        now += decision.after_s + 600
    assert pauses[:7] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert hours * 3600 <= now < hours * 3600 + 700


def checkpointed(step: int, attempt: int) -> Checkpointed:
    name = f"{RUN.id}/{step:08d}"
    checkpoint = Checkpoint(name=name, attempt=attempt, step=step, sha256="a", num_bytes=1)
    return Checkpointed(run=RUN.id, attempt=attempt, checkpoint=checkpoint, score=None)


def lost(state: State, times: int, attempt: int = 0) -> State:
    """The state after the order was lost so often, and each time decided about."""
    for number in range(attempt + 1, attempt + times + 1):
        who = {"order": ORDER, "run": RUN.id, "attempt": number, "time": 100.0 * number}
        failed = Failed(**who, error="lost", message="it died")
        state = then(state, [Ordered(**who, what="train", due_since=0.0), failed])
        (decision,) = retry.retry_decisions(Moment(PROGRAM, state), now=0.0)
        state = then(state, [decision])
        if isinstance(decision, RetryDecided):
            state = then(state, [BackoffOver(order=ORDER)])
    return state


def test_progress_begins_a_new_count_but_repeated_work_does_not() -> None:
    state = lost(fold([Preflighted(facts=facts(PROGRAM))]), 3)
    assert not state.gave_up
    farther = lost(then(state, [checkpointed(10, attempt=3)]), 3, attempt=3)
    assert not farther.gave_up and len(farther.failures[ORDER]) == 6
    again = then(farther, [checkpointed(10, attempt=6)])
    assert lost(again, 1, attempt=6).gave_up


def test_a_new_driver_begins_a_new_count() -> None:
    state = lost(fold([Preflighted(facts=facts(PROGRAM))]), 3)
    state = then(state, [Opened(driver="h:1", fleet="ray", slots=2)])
    assert not lost(state, 3, attempt=3).gave_up


def test_a_repair_that_failed_under_earlier_drivers_is_still_decided_about() -> None:
    opened = Opened(driver="h:1", fleet="ray", slots=2)

    def fails(attempt: int) -> list[AnyEvent]:
        who = {"order": "preflight", "attempt": attempt}
        return [
            Ordered(**who, what="preflight", due_since=0.0),
            Failed(**who, error="lost", message="it died"),
        ]

    state = fold([opened, *fails(1)])
    (decision,) = retry.retry_decisions(Moment(PROGRAM, state), now=0.0)
    events = [decision, BackoffOver(order="preflight"), opened, Preflighted(facts=facts(PROGRAM))]
    state = then(state, [*events, opened, *fails(2)])
    (decision,) = retry.retry_decisions(Moment(PROGRAM, state), now=0.0)
    assert isinstance(decision, RetryDecided) and "retry 1 of 3" in decision.reason


def test_a_raised_limit_revives_what_it_had_given_up() -> None:
    state = lost(fold([Preflighted(facts=facts(PROGRAM))]), 4)
    assert ORDER in state.gave_up and state.run(RUN.id).failed
    assert not list(retry.retry_decisions(Moment(PROGRAM, state), now=0.0))
    patient = simulated(2, fleet={"max_failures": 5})
    (revived,) = retry.retry_decisions(Moment(patient, state), now=0.0)
    assert isinstance(revived, Revived)
    state = then(state, [revived])
    assert not state.gave_up and state.run(RUN.id).failed is None
    assert not lost(state, 3, attempt=4).gave_up


@pytest.mark.parametrize("kind", ["base", "train", "taste", "merge", "blend", "score", "compare"])
def test_what_was_given_up_can_be_tried_again_and_nothing_is_lost(folder: Path, kind: str) -> None:
    """A broken cluster costs all retries of an order. Mended, the same soup comes out."""
    is_broken = True

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("lost") if is_broken and order.kind == kind else None

    peaceful = live(World.at(folder / "peaceful", simulated(3)))
    world = World.at(folder / "broken", simulated(3), mishaps=breaks)
    assert live(world).gave_up
    is_broken = False
    assert live(world).gave_up, "the same command gives up nothing twice"
    state = live(world, retry_failed=True)
    assert not state.gave_up and state.served is not None and peaceful.served is not None
    assert state.served.soup == peaceful.served.soup is not None
    moment = Moment(world.expanded, world.state())
    assert {moment.phase_of(run) for run in world.expanded.runs} == {"done"}


def test_out_of_memory_halves_the_micro_batch_down_to_two() -> None:
    sizes = []
    for times in range(1, 5):
        _, decision = failing("oom", times)
        assert isinstance(decision, RetryDecided)
        sizes.append(decision.micro_batch)
    assert RUN.train.batch_size == 32 and sizes == [16, 8, 4, 2]
    _, last = failing("oom", 5)
    assert isinstance(last, GaveUp) and "cannot shrink" in last.reason


def test_out_of_memory_outside_training_is_given_up() -> None:
    _, decision = failing("oom", 1, run=None)
    assert isinstance(decision, GaveUp)


def test_a_pause_ends_by_the_clock_and_becomes_an_event() -> None:
    before, decision = failing("lost", 1)
    state = then(before, [decision])
    assert not list(retry.retry_decisions(Moment(PROGRAM, state), now=100.5))
    (over,) = retry.retry_decisions(Moment(PROGRAM, state), now=101.0)
    assert isinstance(over, BackoffOver) and over.order == ORDER
    assert not then(state, [over]).backoff


def test_every_error_class_has_a_policy() -> None:
    assert set(retry.POLICIES) == set(ErrorClass.__args__)


def test_a_soup_that_was_spoilt_is_blended_again(folder: Path) -> None:
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if order.kind == "score" and order.checkpoint.name.startswith("soup/") and not damaged:
            damaged.append(order.checkpoint.id)
            return Mishap("corrupt", checkpoint=order.checkpoint.id)
        return None

    world = World.at(folder, simulated(3), mishaps=breaks)
    state = live(world)
    blends = [order for order, _ in world.performed if order.startswith("blend-")]
    assert damaged and max(blends.count(order) for order in blends) == 2
    assert state.served is not None and state.served.soup is not None and not state.gave_up
