"""Observe rounds: an anytime soup of the newest checkpoints while training goes on.

An epoch of the fleet is as many run-epochs as there are slots (or runs, if fewer). After each
`merge.every` of them a round opens, unless the last one is unfinished: then it is skipped. A round
is never a candidate for serving; its tastes run on the merge actor, so training is untouched. One
that outlives training is abandoned by an event, before any of its ingredients may be deleted.
"""

from collections.abc import Iterator

from orchestrator.schedule.final_merges import merge_failure, orders_of
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import MergeState
from workers.config.train import period_steps
from workers.types import Abandoned, AnyEvent, AnyOrder, Cohort, Ingredient, MergeOpened, run_id_of


def is_observing(moment: Moment) -> bool:
    return moment.config.merge.mode == "observe" and not moment.all_runs_ended


def observe_decisions(moment: Moment) -> Iterator[AnyEvent]:
    """Open the next round, and abandon rounds that will have no soup."""
    for merge in moment.state.unmixed.values():
        reason = _abandonment(moment, merge) if merge.opened.observe else None
        if reason is not None:
            yield Abandoned(merge=merge.opened.merge, reason=reason)
    if not is_observing(moment):
        return
    for cohort in moment.resolved.cohorts:
        last = _last_round(moment, cohort)
        number = _fleet_rounds(moment, cohort)
        if number <= _number(last) or not _is_finished(last):
            continue
        members = _newest(moment, cohort)
        if len(members) >= 2:
            yield _open(moment, cohort, number, members)


def observe_orders(moment: Moment) -> Iterator[AnyOrder]:
    if not is_observing(moment):
        return
    for cohort in moment.resolved.cohorts:
        last = _last_round(moment, cohort)
        if last is not None and not _is_finished(last):
            yield from orders_of(moment, last, cohort, width=1)


def _series(cohort: Cohort) -> str:
    return f"observe-{cohort.id}"


def _open(
    moment: Moment, cohort: Cohort, number: int, members: tuple[Ingredient, ...]
) -> MergeOpened:
    method = moment.config.merge.method
    return MergeOpened(
        merge=MergeOpened.round_id(_series(cohort), number),
        cohort=cohort.id,
        recipe=method.name,
        options=dict(method.options),
        ingredients=members,
        observe=True,
        round=number,
    )


def _fleet_rounds(moment: Moment, cohort: Cohort) -> int:
    """Rounds that should have opened by now: steps done by all, in periods of the whole fleet."""
    resolved = moment.resolved
    members = resolved.members[cohort.id]
    period = period_steps(moment.config.merge.every, resolved.shortest_epoch[cohort.id])
    assert period is not None, "merge.every was validated"
    return moment.index.steps[cohort.id] // (min(moment.state.slots, len(members)) * period)


def _newest(moment: Moment, cohort: Cohort) -> tuple[Ingredient, ...]:
    """The newest checkpoint of every run, and of its moving average, that has not failed."""
    return tuple(
        newest
        for variant in moment.resolved.variants[cohort.id]
        if moment.run(run_id_of(variant.id)).failed is None
        and (newest := moment.index.newest_ingredient(variant)) is not None
    )


def _last_round(moment: Moment, cohort: Cohort) -> MergeState | None:
    """Rounds are numbered in the order in which they open."""
    series = _series(cohort)
    rounds = (m for m in reversed(moment.state.merges.values()) if m.opened.series == series)
    return next(rounds, None)


def _number(merge: MergeState | None) -> int:
    return 0 if merge is None or merge.opened.round is None else merge.opened.round


def _is_finished(merge: MergeState | None) -> bool:
    return merge is None or merge.soup is not None or merge.abandoned is not None


def _abandonment(moment: Moment, merge: MergeState) -> str | None:
    """Why to abandon an unfinished round. None: it goes on."""
    if not is_observing(moment):
        return "training ended before it was over"
    if merge.opened.merge in moment.index.incomplete:
        return "an ingredient is corrupt"
    return merge_failure(moment.state, merge)
