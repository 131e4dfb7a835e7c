"""Sync merges: members stop at a boundary, are merged, and continue from the merged weights.

    all are here, or a quorum and the deadline is over --> merge_opened: who takes part, who not
        --> [recipe asks, slots answer]* --> blend --> (guard: score) --> round_closed --> train

PAPA-all of Jolicoeur-Martineau et al., "PopulAtion Parameter Averaging" (TMLR 2024), with any
recipe for the mean; `pull` is its gradual form. Every decision is an event before it takes effect.
"""

from collections.abc import Iterator
from statistics import mean

from orchestrator.config.sections import PULL
from orchestrator.schedule import sync_rounds
from orchestrator.schedule.final_merges import merge_failure, orders_of
from orchestrator.schedule.ingredients import ingredient
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.sync_rounds import SyncGroup, merged_soup_name
from orchestrator.schedule.training import segment
from orchestrator.state.state import MergeState, State
from workers.types import (
    SELECTION,
    AnyEvent,
    AnyOrder,
    BlendOrder,
    Checkpoint,
    Cohort,
    Decision,
    DiversityOrder,
    Ingredient,
    MergeOpened,
    Rejoin,
    Rejoined,
    RoundClosed,
    RunSpec,
    ScoreOrder,
    TrainOrder,
    WeightSpaceGroup,
)


def sync_decisions(moment: Moment, now: float) -> Iterator[AnyEvent]:
    """Open and close rounds; tell late runs what to continue from."""
    if not sync_rounds.is_under_way(moment):
        return
    for group in sync_rounds.sync_groups(moment.resolved):
        rounds = sync_rounds.rounds_of(moment, group)
        last = rounds[-1] if rounds else None
        if last is not None and last.closed is None:
            yield from _closing(moment, last)
        else:
            number = 1 if last is None else (last.opened.round or 0) + 1
            yield from _opening(moment, group, number, now)
        yield from _rejoining(moment, group)


# Who takes part


def _opening(moment: Moment, group: SyncGroup, number: int, now: float) -> Iterator[AnyEvent]:
    going, failed = _members(moment, group, number)
    here = [run for run in going if _is_at(moment, run, number)]
    missing = [run for run in going if run not in here]
    if not here or (missing and not _is_over_due(moment, here, len(going), now)):
        return
    recipe = moment.expanded.round_recipe
    yield MergeOpened(
        merge=group.round_id(number),
        cohort=group.cohort.id,
        recipe=recipe.name,
        options=dict(recipe.options),
        ingredients=tuple(_ingredient(moment, run) for run in here),
        left_out=(*failed, *(_late(moment, run) for run in missing)),
        observe=False,
        round=number,
    )


def _members(
    moment: Moment, group: SyncGroup, number: int
) -> tuple[list[RunSpec], tuple[Decision, ...]]:
    """(members that are still training, decisions about those that failed)."""
    members = sync_rounds.members_of_round(moment.resolved, group, number)
    failures = {run.id: moment.run(run.id).failed for run in members}
    failed = tuple(
        Decision(candidate=run, accepted=False, reason=f"it failed: {reason}")
        for run, reason in failures.items()
        if reason is not None
    )
    going = [
        run for run in members if failures[run.id] is None and not moment.run(run.id).ended_early
    ]
    return going, failed


def _is_at(moment: Moment, run: RunSpec, number: int) -> bool:
    progress = moment.run(run.id)
    has_checkpoint = progress.last is not None and progress.last.step == progress.trained_to
    boundary = sync_rounds.boundary_at(moment.resolved, run, progress.trained_to)
    return has_checkpoint and boundary == number


def _is_over_due(moment: Moment, here: list[RunSpec], num_going: int, now: float) -> bool:
    """A quorum waits, and no run has arrived for `deadline_s`: with fewer slots than members each
    has its turn first. The time without a driver does not count, since no run could arrive."""
    config = moment.config.merge
    quorum = config.quorum or num_going // 2 + 1
    if config.deadline_s is None or len(here) < quorum:
        return False
    arrived = max(moment.run(run.id).reached_at or 0.0 for run in here)
    return now >= max(arrived, moment.state.opened_at or 0.0) + config.deadline_s


def _ingredient(moment: Moment, run: RunSpec) -> Ingredient:
    newest = moment.run(run.id).checkpoints[-1]
    return ingredient(run.id, newest, moment.config.soup.metric)


def _late(moment: Moment, run: RunSpec) -> Decision:
    deadline_s, step = moment.config.merge.deadline_s, moment.run(run.id).trained_to
    reason = f"late: known to be at step {step} when merge.deadline_s, {deadline_s:g} s, ended"
    return Decision(candidate=run.id, accepted=False, reason=reason)


def _rejoining(moment: Moment, group: SyncGroup) -> Iterator[AnyEvent]:
    """Runs at the boundary of a round that went without them."""
    newest = sync_rounds.latest_closed_round(moment, group)
    if newest is None:
        return
    for run in sync_rounds.at_boundary(moment):
        step = moment.run(run.id).trained_to
        number = sync_rounds.boundary_at(moment.resolved, run, step) or 0
        is_member = sync_rounds.group_of(moment.resolved, run).series == group.series
        if not is_member or number > (newest.opened.round or 0):
            continue
        if not _took_part(moment, group, run, number) and not _is_rejoined(moment, run, step):
            yield Rejoined(run=run.id, merge=newest.opened.merge, step=step)


def _took_part(moment: Moment, group: SyncGroup, run: RunSpec, number: int) -> bool:
    merge = moment.state.merges[group.round_id(number)]
    return any(member.run == run.id for member in merge.opened.ingredients)


def _is_rejoined(moment: Moment, run: RunSpec, step: int) -> bool:
    rejoined = moment.state.rejoined.get(run.id)
    return rejoined is not None and rejoined.step == step


# What becomes of a round


def round_orders(moment: Moment) -> Iterator[AnyOrder]:
    """What the open rounds need, before anything else: all their runs wait for it."""
    if not sync_rounds.is_under_way(moment):
        return
    state = moment.state
    for group in sync_rounds.sync_groups(moment.resolved):
        rounds = sync_rounds.rounds_of(moment, group)
        if not rounds or rounds[-1].closed is not None or _broken(state, rounds[-1]) is not None:
            continue
        merge, name = rounds[-1], merged_soup_name(rounds[-1])
        if merge.soup is None:
            yield from orders_of(moment, merge, group.cohort, width=state.slots)
        elif name not in state.soups:
            yield _blend(state, merge, group.cohort)
        elif moment.config.merge.guard and name not in state.scores:
            yield _score_order(state, merge, group.cohort)


def _blend(state: State, merge: MergeState, cohort: Cohort) -> BlendOrder:
    assert merge.soup is not None
    return BlendOrder(
        name=merged_soup_name(merge),
        recipe=merge.opened.recipe,
        cohort=cohort,
        soup=merge.soup,
        ingredients=state.checkpoints_named(merge.soup.mix.names),
    )


def _score_order(state: State, merge: MergeState, cohort: Cohort) -> ScoreOrder:
    """Score the merged weights, on the selection split alone."""
    place = state.soups[merged_soup_name(merge)]
    return ScoreOrder(cohort=cohort, checkpoint=place, splits=(SELECTION,))


def _closing(moment: Moment, merge: MergeState) -> Iterator[AnyEvent]:
    opened, name, guarded = merge.opened, merged_soup_name(merge), moment.config.merge.guard
    broken = _broken(moment.state, merge)
    if broken is not None:
        reason = f"{broken}; everyone goes on from its own weights"
        yield RoundClosed(merge=opened.merge, soup=None, reason=reason)
    elif name in moment.state.soups and not guarded:
        yield RoundClosed(merge=opened.merge, soup=name, reason="merged")
    elif name in moment.state.soups and name in moment.state.scores:
        yield _guarded(moment, merge, name)


def _guarded(moment: Moment, merge: MergeState, name: str) -> RoundClosed:
    """The guard: merged weights must not score below their members' mean."""
    merged = moment.state.scores[name][SELECTION].selection(moment.config.soup.metric)
    members = mean(member.score for member in merge.opened.ingredients)
    scores = (
        f"selection score {merged:.4f} of the merged weights, {members:.4f} of its members' mean"
    )
    if merged >= members:
        return RoundClosed(merge=merge.opened.merge, soup=name, reason=scores)
    reason = f"rolled back by merge.guard: {scores}; everyone goes on from its own weights"
    return RoundClosed(merge=merge.opened.merge, soup=None, reason=reason)


def _broken(state: State, merge: MergeState) -> str | None:
    """Why nothing will come of the round. None: it goes on."""
    reason = merge_failure(state, merge)
    if reason is not None:
        return reason
    name = merged_soup_name(merge)
    members = (member.name for member in merge.opened.ingredients)
    corrupt = next((m for m in members if not state.is_known_checkpoint(m)), None)
    if corrupt is not None and name not in state.soups:
        return f"member {corrupt} is corrupt"
    return state.gave_up.get(BlendOrder.id_of(name)) or state.gave_up.get(ScoreOrder.id_of(name))


# Training between rounds


def segment_orders(moment: Moment) -> Iterator[AnyOrder]:
    """Every run that need not wait goes on to its next boundary.

    At most one order per run: a second one would raise the attempt number, and events of the first
    would be ignored as stale.
    """
    if not sync_rounds.is_under_way(moment):
        return
    for run in moment.unfinished_runs:
        base = moment.state.bases.get(moment.resolved.plan_of[run.id].final)
        if base is None or run.id in moment.in_flight:
            continue
        order = _segment(moment, run, base)
        if order is not None:
            yield order


def _segment(moment: Moment, run: RunSpec, base: Checkpoint) -> TrainOrder | None:
    resolved, progress = moment.resolved, moment.run(run.id)
    step = progress.last.step if progress.last is not None else 0
    next_stop = sync_rounds.next_stop(resolved, run, step)
    if sync_rounds.boundary_at(resolved, run, step) is None:
        return segment(moment, run, base, next_stop)
    if progress.trained_to < step:  # its checkpoint is at the boundary, but `trained` never came
        return segment(moment, run, base, step)
    released = sync_rounds.released_by(moment, run)
    if released is None:
        return None
    merged = sync_rounds.merged_weights(moment, sync_rounds.group_of(resolved, run), released)
    if merged is None:
        return segment(moment, run, base, next_stop)
    return segment(moment, run, merged, next_stop, _rejoin(moment, run, released))


def _rejoin(moment: Moment, run: RunSpec, released: MergeState) -> Rejoin:
    """A late run keeps its own optimizer state, because its peers' checkpoints may be deleted.
    Averages skip corrupt peers."""
    config, own = moment.config.merge, moment.run(run.id).last
    assert own is not None
    members = (member.name for member in released.opened.ingredients)
    names = [name for name in members if moment.state.is_known_checkpoint(name)]
    averages = config.optimizer_state == "average" and own.name in names
    policy = config.optimizer_state if averages or config.optimizer_state == "reset" else "keep"
    return Rejoin(
        own_checkpoint=own,
        optimizer_state=policy,
        peers=moment.state.checkpoints_named(names) if averages else (),
        alpha=config.alpha if config.method.name == PULL else None,
    )


# For the report


def round_report_orders(moment: Moment) -> Iterator[AnyOrder]:
    """Scores of merged weights, and how far apart the members were."""
    if not moment.expanded.is_sync:
        return
    state = moment.state
    for group in sync_rounds.sync_groups(moment.resolved):
        for merge in sync_rounds.rounds_of(moment, group):
            if merged_soup_name(merge) in state.soups and not is_scored(state, merge):
                yield _score_order(state, merge, group.cohort)
            if merge.diversity is None and _are_there(state, merge):
                yield _diversity(state, merge, group.cohort)


def is_scored(state: State, merge: MergeState) -> bool:
    return merged_soup_name(merge) in state.scores


def _are_there(state: State, merge: MergeState) -> bool:
    return all(state.is_known_checkpoint(member.name) for member in merge.opened.ingredients)


def _diversity(state: State, merge: MergeState, cohort: Cohort) -> DiversityOrder:
    members = WeightSpaceGroup(
        cohort=cohort,
        base=state.bases[cohort.base],
        ingredients=state.checkpoints_named(m.name for m in merge.opened.ingredients),
        components=(),
    )
    return DiversityOrder(merge=merge.opened.merge, members=members)
