"""The fold: the state is a function of the ledger, and events of stale attempts change nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import REDUCERS, fold
from orchestrator.state.state import State
from tests.simulator.experiment import simulated, then
from tests.simulator.simulator import SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.types import (
    AnyEvent,
    AnyOrder,
    Checkpoint,
    Checkpointed,
    Evaluated,
    Failed,
    Interrupted,
    Opened,
    Ordered,
    Retired,
    Score,
    Started,
    Tasted,
    TasteResult,
    Trained,
    event_adapter,
)

SCORE = Score(count=40, top1=0.5, macro_f1=0.5, nll=1.0, ece=0.1)


def told(events: list[AnyEvent]) -> State:
    return fold(event.model_copy(update={"seq": seq}) for seq, event in enumerate(events))


def ordered(attempt: int, run: str | None = "r", order: str = "train-r") -> Ordered:
    what = "train" if run else "taste"
    return Ordered(order=order, run=run, attempt=attempt, what=what, due_since=0.0)


def checkpointed(step: int, attempt: int) -> Checkpointed:
    made = Checkpoint(name=f"r/{step:08d}", attempt=attempt, step=step, sha256="a", num_bytes=1)
    return Checkpointed(order="train-r", run="r", attempt=attempt, checkpoint=made, score=SCORE)


def some_trouble(order: AnyOrder, attempt: int) -> Mishap | None:
    return Mishap("lost", after=2) if order.kind in ("train", "taste") and attempt == 1 else None


def test_every_kind_of_event_has_its_fold() -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(AnyEvent)[0])}
    assert set(REDUCERS) == kinds


def test_the_state_after_every_group_is_the_fold_of_the_ledger(folder: Path) -> None:
    world = World.at(folder, simulated(2, epochs=2), mishaps=some_trouble)
    mind = driver(world, SimulatedFleet(world))
    num_turns = 0

    def compare(moment: Moment, *_: Any) -> None:
        nonlocal num_turns
        num_turns += 1
        assert moment.state == world.state()

    mind.watch = compare
    assert mind.run() == world.state()
    assert num_turns > 20


def test_folding_in_pieces_is_folding_at_once(folder: Path) -> None:
    world = World.at(folder, mishaps=some_trouble)
    live(world)
    events = world.ledger().replay()
    whole, pieces = fold(events), State()
    for event in events:
        pieces = then(pieces, [event_adapter.validate_json(event.model_dump_json())])
    assert pieces == whole


def stale_words(attempt: int) -> list[AnyEvent]:
    who: dict[str, Any] = {"order": "train-r", "run": "r", "attempt": attempt, "slot": "slot-9"}
    curve: dict[str, Any] = {"loss": 1.0, "lr": 0.1, "images_per_s": 1.0, "score": SCORE}
    return [
        Started(**who, warm=True, gap_s=None),
        Evaluated(**who, step=30, epoch=3, **curve),
        checkpointed(30, attempt),
        Trained(**who, step=30, busy_s=1.0),
        Interrupted(**who, reason="drained"),
        Failed(**who, error="lost", message="died", checkpoint="r/00000010-1"),
        Tasted(
            order="taste-x",
            attempt=attempt,
            mix="m",
            tasting=TasteResult(score=1.0, at_most=1.0, samples=1),
            cohort="c",
            busy_s=1.0,
        ),
    ]


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("attempt", [1, 3])
def test_word_of_another_attempt_changes_nothing(index: int, attempt: int) -> None:
    history = [
        ordered(1),
        checkpointed(10, 1),
        ordered(2),
        ordered(1, run=None, order="taste-x"),
        ordered(2, run=None, order="taste-x"),
    ]
    before = told(history)
    stale = stale_words(attempt)[index].model_copy(update={"seq": len(history)})
    later = then(before, [stale])
    assert replace(later, last_seq=before.last_seq, last_at=before.last_at) == before


def test_a_new_driver_finds_everything_open_again() -> None:
    state = told([ordered(1), Opened(driver="h:1", fleet="local", slots=3)])
    assert not state.open and state.slots == 3
    assert state.attempts == {"r": 1}, "attempts go on counting"


@settings(max_examples=50, deadline=None)
@given(st.permutations([10, 20, 30, 40]), st.lists(st.sampled_from([10, 20, 30, 40])))
def test_checkpoints_count_once_per_step_and_lie_in_order(
    steps: list[int], again: list[int]
) -> None:
    words = [checkpointed(step, 1) for step in [*steps, *again]]
    known = told([ordered(1), *words]).run("r").checkpoints
    assert [event.checkpoint.step for event in known] == [10, 20, 30, 40]


def test_a_complete_score_outlives_a_bound_of_the_same_mix() -> None:
    """A full taste and one with a bar may be in flight together."""

    def tasted(score: float | None, at_most: float, samples: int) -> Tasted:
        tasting = TasteResult(score=score, at_most=at_most, samples=samples)
        return Tasted(mix="m", tasting=tasting, cohort="c", busy_s=2.0)

    words = [tasted(None, 0.9, 8), tasted(0.5, 0.5, 40), tasted(None, 0.8, 16)]
    state = told(words)
    assert state.tastes["c", "m"] == TasteResult(score=0.5, at_most=0.5, samples=64)
    assert state.taste_cost["c", "m"] == 6.0
    bounds = told([tasted(None, 0.7, 8), tasted(None, 0.9, 8)])
    assert bounds.tastes["c", "m"].at_most == 0.7


def test_retired_checkpoints_are_gone_and_remembered() -> None:
    words = [ordered(1), *(checkpointed(step, 1) for step in (10, 20))]
    state = told([*words, Retired(checkpoints=("r/00000010-1",))])
    assert [event.checkpoint.step for event in state.run("r").checkpoints] == [20]
    assert state.retired == {"r/00000010-1"}


def test_a_corrupt_last_checkpoint_makes_the_run_unfinished_again() -> None:
    words = [ordered(1), *(checkpointed(step, 1) for step in (10, 20))]
    trained = Trained(order="train-r", run="r", attempt=1, step=20, busy_s=1.0)
    taste = ordered(1, run=None, order="taste-x")
    corrupt = Failed(
        order="taste-x", attempt=1, error="corrupt", message="", checkpoint="r/00000020-1"
    )
    run = told([*words, trained, taste, corrupt]).run("r")
    assert run.trained_to == 10
    assert run.last is not None and run.last.step == 10


def test_an_older_corrupt_checkpoint_leaves_a_finished_run_finished() -> None:
    words = [ordered(1), *(checkpointed(step, 1) for step in (10, 20))]
    trained = Trained(order="train-r", run="r", attempt=1, step=20, busy_s=1.0)
    taste = ordered(1, run=None, order="taste-x")
    corrupt = Failed(
        order="taste-x", attempt=1, error="corrupt", message="", checkpoint="r/00000010-1"
    )
    assert told([*words, trained, taste, corrupt]).run("r").trained_to == 20
