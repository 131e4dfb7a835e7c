"""What is due: pure rules over a moment, one per kind of order.

    due(moment)              orders that should be in flight, most urgent first
    decisions(moment, now)   facts that the driver may settle by itself, as events

Both look at what is, not at what just happened: asked twice, they answer the same. `due` does not
repeat what a fleet already holds, what waits for its backoff, or what was given up.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

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
from orchestrator.schedule.moment import Moment
from workers.types import AnyEvent, AnyOrder

__all__ = ["RULES", "Moment", "decisions", "due", "is_over"]

RULES: tuple[Callable[[Moment], Iterable[AnyOrder]], ...] = (
    preparation.base_orders,
    sync_merges.round_orders,
    training.train_orders,
    sync_merges.segment_orders,
    basin.basin_orders,
    final_merges.final_orders,
    scoring.score_orders,
    final_merges.blend_orders,
    scoring.soup_score_orders,
    scoring.compare_orders,
    serving.serve_orders,
    analysis.analysis_orders,
    path_scores.path_orders,
    observe.observe_orders,
    sync_merges.round_report_orders,
    retention.retire_orders,
)
"""In order of priority: what a sync round waits for, then training, final tastes and scores; last
what training must not wait for. Each may assume that preflight is done."""


def due(moment: Moment, most: int | None = None) -> tuple[AnyOrder, ...]:
    """At most `most` orders of each rule: a fleet takes only some, and thousands may be due."""
    return tuple(chain.from_iterable(islice(orders, most) for orders in _due_by_rule(moment)))


def _due_by_rule(moment: Moment) -> Iterator[Iterator[AnyOrder]]:
    state = moment.state
    if state.stopped is not None or serving.preflight_refusal(state) is not None:
        return
    rules = RULES if moment.is_resolved else (_preflight,)
    if any(True for _ in preparation.repair_orders(moment)):
        rules = (preparation.repair_orders,)
    for rule in rules:
        yield (order for order in rule(moment) if not state.is_blocked(order.id))


def _preflight(moment: Moment) -> Iterator[AnyOrder]:
    """Before it is done, there is nothing else to do."""
    order = preparation.preflight_order(moment.expanded)
    earlier = moment.state.preflight
    splits = earlier.splits if earlier is not None else {}
    fingerprints = {name: split.fingerprint for name, split in splits.items()}
    yield order.model_copy(update={"fingerprints": fingerprints})


def decisions(moment: Moment, now: float) -> tuple[AnyEvent, ...]:
    return tuple(_decisions(moment, now))


def _decisions(moment: Moment, now: float) -> Iterator[AnyEvent]:
    yield from retry.retry_decisions(moment, now)
    yield from serving.finish_decisions(moment, now)
    if moment.is_resolved:
        yield from final_merges.merge_decisions(moment)
        yield from observe.observe_decisions(moment)
        yield from sync_merges.sync_decisions(moment, now)
        yield from serving.served_nothing(moment)


def is_over(moment: Moment) -> bool:
    """Nothing is in flight, waits, could be done or settled: the experiment has all it will get."""
    state = moment.state
    if state.open or state.backoff or state.unresolved_failures:
        return False
    if serving.preflight_refusal(state) is not None:
        return True
    return not due(moment, most=1) and not decisions(moment, now=0.0)
