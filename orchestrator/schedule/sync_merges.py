"""Sync rounds: members stop at a boundary, are merged, and go on from the merged weights.

    all are here, or a quorum and the deadline is over --> merge_opened: who takes part, who not
        --> [recipe asks, slots answer]* --> blend --> (guard: score) --> round_closed --> train

PAPA-all of Jolicoeur-Martineau et al., "PopulAtion Parameter Averaging" (TMLR 2024), with any
recipe for the mean; `pull` is its gradual form. Every decision is an event before anybody is told.
"""

from collections.abc import Iterator
from statistics import mean

from orchestrator.config.sections import PULL
from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.schedule import sync_merges, sync_rounds
from orchestrator.schedule.final_merges import failure, orders_of
from orchestrator.schedule.ingredients import checkpoints_named, ingredient, is_known_checkpoint
from orchestrator.schedule.sync_rounds import SyncGroup
from orchestrator.schedule.training import in_flight, segment, unfinished
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


def decisions(program: ExpandedExperiment, state: State, now: float) -> Iterator[AnyEvent]:
    if state.facts is None or not sync_rounds.is_under_way(program, state):
        return
    resolved = resolve(program, state.facts)
    for circle in sync_rounds.sync_groups(resolved):
        known = sync_rounds.rounds(state, circle)
        last = known[-1] if known else None
        if last is not None and last.closed is None:
            yield from _closing(program, state, last)
        else:
            number = 1 if last is None else (last.opened.round or 0) + 1
            yield from _opening(program, state, resolved, circle, number, now)
        yield from _rejoining(program, state, resolved, circle)


# Who takes part


def _opening(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment,
    circle: SyncGroup,
    number: int,
    now: float,
) -> Iterator[AnyEvent]:
    going, dead = _living(program, state, resolved, circle, number)
    here = [run for run in going if _is_at(program, state, resolved, run, number)]
    missing = [run for run in going if run not in here]
    if not here or (missing and not _is_over_due(program, state, here, len(going), now)):
        return
    recipe = program.round_recipe
    yield MergeOpened(
        merge=sync_rounds.round_id(circle, number),
        cohort=circle.cohort.id,
        recipe=recipe.name,
        options=dict(recipe.options),
        ingredients=tuple(_ingredient(program, state, run) for run in here),
        left_out=(*dead, *(_late(program, state, run) for run in missing)),
        observe=False,
        round=number,
    )


def _living(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment,
    circle: SyncGroup,
    number: int,
) -> tuple[list[RunSpec], tuple[Decision, ...]]:
    """(members that are still training, decisions about those that failed)."""
    concerned = sync_rounds.members_of_round(program, resolved, circle, number)
    failed = tuple(
        Decision(candidate=run.id, accepted=False, reason=f"it failed: {state.run(run.id).failed}")
        for run in concerned
        if state.run(run.id).failed is not None
    )
    going = [
        run
        for run in concerned
        if state.run(run.id).failed is None and not state.run(run.id).ended_early
    ]
    return going, failed


def _is_at(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment,
    run: RunSpec,
    number: int,
) -> bool:
    known = state.run(run.id)
    whole = known.last is not None and known.last.step == known.trained_to
    return whole and sync_rounds.boundary_at(program, resolved, run, known.trained_to) == number


def _is_over_due(
    program: ExpandedExperiment, state: State, here: list[RunSpec], num_going: int, now: float
) -> bool:
    """A quorum waits, and nobody has arrived for `deadline_s`: with fewer slots than members each
    has its turn first. While there was no driver nobody could arrive."""
    spec = program.experiment.merge
    quorum = spec.quorum or num_going // 2 + 1
    if spec.deadline_s is None or len(here) < quorum:
        return False
    arrived = max(state.run(run.id).reached_at or 0.0 for run in here)
    return now >= max(arrived, state.opened_at or 0.0) + spec.deadline_s


def _ingredient(program: ExpandedExperiment, state: State, run: RunSpec) -> Ingredient:
    known = state.run(run.id)
    return ingredient(run, known, known.checkpoints[-1], program.experiment.soup.metric)


def _late(program: ExpandedExperiment, state: State, run: RunSpec) -> Decision:
    spec, step = program.experiment.merge, state.run(run.id).trained_to
    reason = f"late: known to be at step {step} when merge.deadline_s, {spec.deadline_s:g} s, ended"
    return Decision(candidate=run.id, accepted=False, reason=reason)


def _rejoining(
    program: ExpandedExperiment, state: State, resolved: ResolvedExperiment, circle: SyncGroup
) -> Iterator[AnyEvent]:
    """Who stands at the boundary of a round that went without it."""
    newest = sync_rounds.latest_closed_round(state, circle)
    for run in sync_rounds.at_boundary(program, state) if newest is not None else ():
        assert newest is not None
        step = state.run(run.id).trained_to
        number = sync_rounds.boundary_at(program, resolved, run, step) or 0
        mine = sync_rounds.group_of(resolved, run).id == circle.id
        missed = mine and number <= (newest.opened.round or 0)
        if missed and not _took_part(state, circle, run, number) and not _is_told(state, run, step):
            yield Rejoined(run=run.id, merge=newest.opened.merge, step=step)


def _took_part(state: State, circle: SyncGroup, run: RunSpec, number: int) -> bool:
    merge = state.merges[sync_rounds.round_id(circle, number)]
    return any(each.run == run.id for each in merge.opened.ingredients)


def _is_told(state: State, run: RunSpec, step: int) -> bool:
    told = state.rejoined.get(run.id)
    return told is not None and told.step == step


# What becomes of a round


def orders(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """What the open rounds need, before anything else: everybody waits for it."""
    if state.facts is None or not sync_rounds.is_under_way(program, state):
        return
    for circle in sync_rounds.sync_groups(resolve(program, state.facts)):
        cohort, known = circle.cohort, sync_rounds.rounds(state, circle)
        if not known or known[-1].closed is not None or _broken(state, known[-1]) is not None:
            continue
        merge, name = known[-1], sync_rounds.soup_name(known[-1])
        if merge.soup is None:
            yield from orders_of(program, state, merge, cohort, width=state.slots)
        elif name not in state.soups:
            yield _blend(state, merge, cohort)
        elif program.experiment.merge.guard and name not in state.scores:
            yield score_order(state, merge, cohort)


def _blend(state: State, merge: MergeState, cohort: Cohort) -> BlendOrder:
    assert merge.soup is not None
    return BlendOrder(
        name=sync_rounds.soup_name(merge),
        recipe=merge.opened.recipe,
        cohort=cohort,
        soup=merge.soup,
        ingredients=checkpoints_named(state, merge.soup.mix.names),
    )


def score_order(state: State, merge: MergeState, cohort: Cohort) -> ScoreOrder:
    """On the selection split alone."""
    place = state.soups[sync_rounds.soup_name(merge)]
    return ScoreOrder(cohort=cohort, checkpoint=place, splits=(SELECTION,))


def _closing(program: ExpandedExperiment, state: State, merge: MergeState) -> Iterator[AnyEvent]:
    opened, name = merge.opened, sync_rounds.soup_name(merge)
    broken = _broken(state, merge)
    if broken is not None:
        reason = f"{broken}; everyone goes on from its own weights"
        yield RoundClosed(merge=opened.merge, soup=None, reason=reason)
    elif name in state.soups and not program.experiment.merge.guard:
        yield RoundClosed(merge=opened.merge, soup=name, reason="merged")
    elif name in state.soups and name in state.scores:
        yield _judged(program, state, merge, name)


def _judged(program: ExpandedExperiment, state: State, merge: MergeState, name: str) -> RoundClosed:
    """The guard: what was merged must not score below its members' mean."""
    merged = state.scores[name][SELECTION].selection(program.experiment.soup.metric)
    members = mean(each.score for each in merge.opened.ingredients)
    said = f"selection score {merged:.4f} of the merged weights, {members:.4f} of its members' mean"
    if merged >= members:
        return RoundClosed(merge=merge.opened.merge, soup=name, reason=said)
    reason = f"rolled back by merge.guard: {said}; everyone goes on from its own weights"
    return RoundClosed(merge=merge.opened.merge, soup=None, reason=reason)


def _broken(state: State, merge: MergeState) -> str | None:
    """Why nothing will come of the round."""
    reason = failure(state, merge.opened.merge)
    if reason is not None:
        return reason
    corrupt = [
        each.name for each in merge.opened.ingredients if not is_known_checkpoint(state, each.name)
    ]
    if corrupt and sync_rounds.soup_name(merge) not in state.soups:
        return f"member {corrupt[0]} is corrupt"
    stem = sync_rounds.soup_name(merge).removeprefix("soup/")
    return state.gave_up.get(f"blend-{stem}") or state.gave_up.get(f"score-soup_{stem}")


# Training between rounds


def runs(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """Every run that need not wait goes on to its next boundary.

    One order of a run at a time: word of an earlier one would be a zombie's once it is ordered for
    another boundary, as it would be when its checkpoint is found spoilt while it trains on.
    """
    if state.facts is None or not sync_rounds.is_under_way(program, state):
        return
    resolved, busy = resolve(program, state.facts), in_flight(state)
    for run in unfinished(program, state):
        if run.id in busy:
            continue
        base = state.bases.get(resolved.plan_of[run.id].final)
        order = _segment(program, state, resolved, run, base) if base is not None else None
        if order is not None:
            yield order


def _segment(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment,
    run: RunSpec,
    base: Checkpoint,
) -> TrainOrder | None:
    known = state.run(run.id)
    step = known.last.step if known.last is not None else 0
    if sync_rounds.boundary_at(program, resolved, run, step) is None:
        return segment(
            state, resolved, run, base, sync_rounds.next_stop(program, resolved, run, step)
        )
    if known.trained_to < step:  # it stands there, but its word never came
        return segment(state, resolved, run, base, step)
    cleared = sync_rounds.released_by(program, state, resolved, run)
    if cleared is None:
        return None
    stop_step = sync_rounds.next_stop(program, resolved, run, step)
    merged = sync_rounds.merged_weights(state, sync_rounds.group_of(resolved, run), cleared)
    if merged is None:
        return segment(state, resolved, run, base, stop_step)
    rejoin = _rejoin(program, state, run, cleared)
    return segment(state, resolved, run, merged, stop_step, rejoin)


def _rejoin(program: ExpandedExperiment, state: State, run: RunSpec, cleared: MergeState) -> Rejoin:
    """Who was late keeps its own optimizer's state: the others' may be gone. The average is of what
    is left, should a member's checkpoint have been spoilt since."""
    spec, own = program.experiment.merge, state.run(run.id).last
    assert own is not None
    names = [e.name for e in cleared.opened.ingredients if is_known_checkpoint(state, e.name)]
    averages = spec.optimizer_state == "average" and own.name in names
    policy = spec.optimizer_state if averages or spec.optimizer_state == "reset" else "keep"
    return Rejoin(
        own_checkpoint=own,
        optimizer_state=policy,
        peers=checkpoints_named(state, names) if averages else (),
        alpha=spec.alpha if spec.method.name == PULL else None,
    )


def report_orders(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """Scores of merged weights, and how far apart the members were."""
    if state.facts is None or not sync_rounds.is_on(program):
        return
    for circle in sync_rounds.sync_groups(resolve(program, state.facts)):
        cohort = circle.cohort
        for merge in sync_rounds.rounds(state, circle):
            if sync_rounds.soup_name(merge) in state.soups and not is_scored(state, merge):
                yield sync_merges.score_order(state, merge, cohort)
            if merge.diversity is None and _are_there(state, merge):
                yield _diversity(state, merge, cohort)


def is_scored(state: State, merge: MergeState) -> bool:
    return sync_rounds.soup_name(merge) in state.scores


def _are_there(state: State, merge: MergeState) -> bool:
    return all(is_known_checkpoint(state, each.name) for each in merge.opened.ingredients)


def _diversity(state: State, merge: MergeState, cohort: Cohort) -> DiversityOrder:
    members = WeightSpaceGroup(
        cohort=cohort,
        base=state.bases[cohort.base],
        ingredients=checkpoints_named(state, [each.name for each in merge.opened.ingredients]),
        components=(),
    )
    return DiversityOrder(merge=merge.opened.merge, members=members)
