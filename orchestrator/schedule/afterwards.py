"""After a sync round: what the report tells of it, and which checkpoints it still needs."""

from collections.abc import Iterator

from orchestrator.program import Program, resolve
from orchestrator.schedule import rounds, sync
from orchestrator.schedule.choose import counts, locate_all
from orchestrator.state import MergeState, State
from workers.types import AnyOrder, Cohort, DiversityOrder, Ingredient, Weighed


def telling(program: Program, state: State) -> Iterator[AnyOrder]:
    """Scores of merged weights, and how far apart the members were."""
    if state.facts is None or not rounds.is_on(program):
        return
    for circle in rounds.circles(resolve(program, state.facts)):
        cohort = circle.cohort
        for merge in rounds.rounds(state, circle):
            if rounds.soup_name(merge) in state.soups and not _is_scored(state, merge):
                yield sync.score_order(state, merge, cohort)
            if merge.diversity is None and _are_there(state, merge):
                yield _diversity(state, merge, cohort)


def _is_scored(state: State, merge: MergeState) -> bool:
    return rounds.soup_name(merge) in state.scores


def _are_there(state: State, merge: MergeState) -> bool:
    return all(counts(state, each.name) for each in merge.opened.ingredients)


def _diversity(state: State, merge: MergeState, cohort: Cohort) -> DiversityOrder:
    members = Weighed(
        cohort=cohort,
        base=state.bases[cohort.base],
        ingredients=locate_all(state, [each.name for each in merge.opened.ingredients]),
        components=(),
    )
    return DiversityOrder(merge=merge.opened.merge, members=members)


def pinned(program: Program, state: State) -> frozenset[str]:
    """Names of checkpoints that a round may still read."""
    if state.facts is None or not rounds.is_on(program):
        return frozenset()
    named = {
        each.name
        for circle in rounds.circles(resolve(program, state.facts))
        for merge in rounds.rounds(state, circle)
        if _is_read(program, state, merge)
        for each in merge.opened.ingredients
    }
    return frozenset(named)


def _is_read(program: Program, state: State, merge: MergeState) -> bool:
    if merge.closed is None and rounds.is_under_way(program, state):
        return True
    if merge.diversity is None and f"diversity-{merge.opened.merge}" not in state.gave_up:
        return True
    averages = program.experiment.merge.optimizer_state == "average"
    return averages and any(_stands(state, each) for each in merge.opened.ingredients)


def _stands(state: State, member: Ingredient) -> bool:
    """It has not gone beyond what it brought to the round."""
    known = state.run(member.run)
    return known.failed is None and known.last is not None and known.last.name == member.name


def superseded(program: Program, state: State) -> Iterator[str]:
    """Names of merged weights that nobody goes on from any more, and that have been told of."""
    if state.facts is None or not rounds.is_on(program):
        return
    resolved = resolve(program, state.facts)
    in_use = {
        merged.name
        for run in rounds.waiting(program, state)
        if (cleared := rounds.clearance(program, state, resolved, run)) is not None
        and (merged := rounds.merged_weights(state, rounds.circle_of(resolved, run), cleared))
    }
    for circle in rounds.circles(resolved):
        newest = rounds.newest_closed(state, circle)
        for merge in rounds.rounds(state, circle):
            name = rounds.soup_name(merge)
            if merge is newest or merge.closed is None or name in in_use:
                continue
            if name in state.soups and _is_told_of(state, merge):
                yield name


def _is_told_of(state: State, merge: MergeState) -> bool:
    gave_up = f"score-{rounds.soup_name(merge).replace('/', '_')}" in state.gave_up
    return _is_scored(state, merge) or gave_up
