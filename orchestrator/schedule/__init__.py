"""What is due: pure rules over the state, one per kind of order.

    due(program, state)         orders that should be in flight, most urgent first
    decisions(program, state, now)   facts that the driver may settle by itself, as events

Both look at what is, not at what just happened: asked twice, they answer the same. `due` does not
repeat what a fleet already holds, what waits for its backoff, or what was given up.
"""

from collections.abc import Iterator
from itertools import chain

from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule import (
    analysis,
    basin,
    final_merges,
    observe,
    path_scores,
    preparation,
    retention,
    retry,
    scoring,
    serving,
    sync_merges,
    training,
)
from orchestrator.state.remember import remembered
from orchestrator.state.state import State
from workers.types import AnyEvent, AnyOrder

RULES = (
    preparation.preflight,
    preparation.bases,
    sync_merges.orders,
    training.runs,
    sync_merges.runs,
    basin.orders,
    final_merges.final_orders,
    scoring.runs,
    final_merges.blends,
    scoring.soups,
    scoring.comparison,
    serving.serve_order,
    analysis.orders,
    path_scores.orders,
    observe.orders,
    sync_merges.report_orders,
    retention.checkpoints,
)
"""In order of priority: what a sync round waits for, then training, final tastes and scores; last
what training must not wait for."""


@remembered(by=lambda program, state: (program, state))
def due(program: ExpandedExperiment, state: State) -> tuple[AnyOrder, ...]:
    return tuple(order for order in wanted(program, state) if not state.is_blocked(order.id))


def wanted(program: ExpandedExperiment, state: State) -> tuple[AnyOrder, ...]:
    """Due, or already in flight; rules may leave out what is in flight."""
    if state.stopped is not None or serving.preflight_refusal(state) is not None:
        return ()
    return tuple(chain.from_iterable(rule(program, state) for rule in RULES))


def decisions(program: ExpandedExperiment, state: State, now: float) -> tuple[AnyEvent, ...]:
    return tuple(_decisions(program, state, now))


def _decisions(program: ExpandedExperiment, state: State, now: float) -> Iterator[AnyEvent]:
    yield from retry.decisions(program, state, now)
    yield from serving.deadline(program, state, now)
    yield from final_merges.decisions(program, state)
    yield from observe.decisions(program, state)
    yield from sync_merges.decisions(program, state, now)
    yield from serving.served_nothing(program, state)


def is_over(program: ExpandedExperiment, state: State) -> bool:
    """Nothing is in flight, waits, could be done or settled: the experiment has all it will get."""
    if state.open or state.backoff or state.unresolved_failures:
        return False
    if serving.preflight_refusal(state) is not None:
        return True
    return not due(program, state) and not decisions(program, state, now=0.0)
