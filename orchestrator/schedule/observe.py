"""Observe rounds: an anytime soup of the newest checkpoints while training goes on.

An epoch of the fleet is as many run-epochs as there are slots (or runs, if fewer). After each
`merge.every` of them a round opens, unless the last one is unfinished: then it is skipped. A round
is never a candidate for serving; its tastes run on the merge actor, so training is untouched.
"""

from collections.abc import Iterator

from orchestrator.program import Program, Resolved, resolve
from orchestrator.schedule.choose import as_ingredient, counts
from orchestrator.schedule.merge import failure, orders_of
from orchestrator.schedule.train import all_settled
from orchestrator.state import MergeState, State
from workers.spec import period_steps
from workers.types import AnyEvent, AnyOrder, Cohort, Ingredient, MergeOpened, run_of


def is_on(program: Program, state: State) -> bool:
    return program.experiment.merge.mode == "observe" and not all_settled(program, state)


def decisions(program: Program, state: State) -> Iterator[AnyEvent]:
    if state.facts is None or not is_on(program, state):
        return
    resolved = resolve(program, state.facts)
    for cohort in resolved.cohorts:
        last = _last_round(state, cohort)
        if not _is_finished(state, last):
            continue
        number = _fleet_rounds(program, state, resolved, cohort)
        if number <= _number(last):
            continue
        members = _newest(program, state, resolved, cohort)
        if len(members) >= 2:
            yield _open(program, cohort, number, members)


def orders(program: Program, state: State) -> Iterator[AnyOrder]:
    if state.facts is None or not is_on(program, state):
        return
    for cohort in resolve(program, state.facts).cohorts:
        last = _last_round(state, cohort)
        if last is not None and not _is_finished(state, last):
            yield from orders_of(program, state, last, cohort, width=1)


def _open(
    program: Program, cohort: Cohort, number: int, members: tuple[Ingredient, ...]
) -> MergeOpened:
    method = program.experiment.merge.method
    return MergeOpened(
        merge=f"observe-{cohort.id}-{number:04d}",
        cohort=cohort.id,
        recipe=method.name,
        options=dict(method.options),
        ingredients=members,
        observe=True,
        round=number,
    )


def _fleet_rounds(program: Program, state: State, resolved: Resolved, cohort: Cohort) -> int:
    """Rounds that should have opened by now: steps done by all, in periods of the whole fleet."""
    members = resolved.members[cohort.id]
    steps = sum(state.run(run.id).evaluated_to for run in members)
    shortest = min(members, key=lambda run: resolved.num_steps[run.id])
    steps_per_epoch = resolved.num_steps[shortest.id] // shortest.train.epochs
    period = period_steps(program.experiment.merge.every, steps_per_epoch)
    assert period is not None, "merge.every was validated"
    return steps // (min(state.slots, len(members)) * period)


def _newest(
    program: Program, state: State, resolved: Resolved, cohort: Cohort
) -> tuple[Ingredient, ...]:
    """Of every run, and of its moving average, that has not failed."""
    metric = program.experiment.soup.metric
    going = ((track, state.run(track.id)) for track in resolved.tracks[cohort.id])
    return tuple(
        as_ingredient(track, known, known.scored[-1], metric)
        for track, known in going
        if known.scored and state.run(run_of(track.id)).failed is None
    )


def _last_round(state: State, cohort: Cohort) -> MergeState | None:
    rounds = [m for m in state.merges.values() if m.opened.observe and m.opened.cohort == cohort.id]
    return max(rounds, key=_number, default=None)


def _number(merge: MergeState | None) -> int:
    return 0 if merge is None or merge.opened.round is None else merge.opened.round


def _is_finished(state: State, merge: MergeState | None) -> bool:
    """Mixed, given up, or abandoned because a member turned out corrupt, or was retired when all
    runs had ended: an extension begins where nobody waits for that round any more."""
    if merge is None or merge.soup is not None:
        return True
    if failure(state, merge.opened.merge) is not None:
        return True
    if not state.corrupt and not state.retired:
        return False
    return not all(counts(state, member.name) for member in merge.opened.ingredients)
