"""What is due: pure rules over the state, one per kind of order.

    due(program, state)         orders that should be in flight, most urgent first
    decisions(program, state, now)   facts that the driver may settle by itself, as events

Both look at what is, not at what just happened: asked twice, they answer the same. `due` does not
repeat what a fleet already holds, what waits for its backoff, or what was given up.
"""

from collections.abc import Iterator
from itertools import chain

from orchestrator.program import Program
from orchestrator.remember import remembered
from orchestrator.schedule import (
    afterwards,
    analyse,
    base,
    basin,
    curve,
    finish,
    merge,
    observe,
    retire,
    retry,
    score,
    sync,
    train,
)
from orchestrator.state import State
from workers.types import AnyEvent, AnyOrder

RULES = (
    base.preflight,
    base.bases,
    sync.orders,
    train.runs,
    sync.runs,
    basin.orders,
    merge.final_orders,
    score.runs,
    merge.blends,
    score.soups,
    score.comparison,
    finish.serving,
    analyse.orders,
    curve.orders,
    observe.orders,
    afterwards.telling,
    retire.checkpoints,
)
"""In order of priority: what a sync round waits for, then training, final tastes and scores; last
what training must not wait for."""


@remembered(by=lambda program, state: (program, state))
def due(program: Program, state: State) -> tuple[AnyOrder, ...]:
    return tuple(order for order in wanted(program, state) if not state.holds(order.id))


def wanted(program: Program, state: State) -> tuple[AnyOrder, ...]:
    """Due, or already in flight; rules may leave out what is in flight."""
    if state.stopped is not None or finish.refusal(state) is not None:
        return ()
    return tuple(chain.from_iterable(rule(program, state) for rule in RULES))


def decisions(program: Program, state: State, now: float) -> tuple[AnyEvent, ...]:
    return tuple(_decisions(program, state, now))


def _decisions(program: Program, state: State, now: float) -> Iterator[AnyEvent]:
    yield from retry.decisions(program, state, now)
    yield from finish.deadline(program, state, now)
    yield from merge.decisions(program, state)
    yield from observe.decisions(program, state)
    yield from sync.decisions(program, state, now)
    yield from finish.nothing_to_serve(program, state)


def is_over(program: Program, state: State) -> bool:
    """Nothing is in flight, waits, could be done or settled: the experiment has all it will get."""
    if state.open or state.backoff or state.undecided:
        return False
    if finish.refusal(state) is not None:
        return True
    return not due(program, state) and not decisions(program, state, now=0.0)
