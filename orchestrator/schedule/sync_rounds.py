"""Sync rounds: where their boundaries are, who stands there, and what each round has become.

run A   |=======|boundary 1|=======|boundary 2|=======|end
run B   |=======|boundary 1|=======|boundary 2|=======|=======|boundary 3| ...

A boundary lies every `merge.every` of a run's own epochs, or steps; its end is none, for nothing
would go on from there. A circle is who is merged with one another: the runs of a cohort, and with
folds those of one fold, for else a run would learn from what it holds out.
"""

from dataclasses import dataclass

from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.schedule.training import standing, unfinished
from orchestrator.state.remember import remembered
from orchestrator.state.state import MergeState, State
from workers.config.train import period_steps
from workers.types import Checkpoint, Cohort, RunSpec


@dataclass(frozen=True, eq=False)
class SyncGroup:
    cohort: Cohort
    fold: int | None

    @property
    def id(self) -> str:
        return self.cohort.id if self.fold is None else f"{self.cohort.id}-fold{self.fold}"


@remembered(by=lambda resolved: (resolved,))
def sync_groups(resolved: ResolvedExperiment) -> tuple[SyncGroup, ...]:
    """In configured order."""
    found = [group_of(resolved, run) for c in resolved.cohorts for run in resolved.members[c.id]]
    return tuple({circle.id: circle for circle in found}.values())


def group_of(resolved: ResolvedExperiment, run: RunSpec) -> SyncGroup:
    return SyncGroup(resolved.cohort_of[run.id], run.fold)


def is_on(program: ExpandedExperiment) -> bool:
    return program.experiment.merge.mode == "sync"


def is_under_way(program: ExpandedExperiment, state: State) -> bool:
    """Rounds may still open and close: time is not up, and somebody has yet to train."""
    return is_on(program) and state.finish_reason is None and bool(unfinished(program, state))


def period(program: ExpandedExperiment, resolved: ResolvedExperiment, run: RunSpec) -> int:
    """Steps of the run between boundaries."""
    steps = period_steps(program.experiment.merge.every, resolved.steps_per_epoch[run.id])
    assert steps is not None, "merge.every was validated"
    return steps


def boundary_at(
    program: ExpandedExperiment, resolved: ResolvedExperiment, run: RunSpec, step: int
) -> int | None:
    """Number of the round that the run awaits at this step, if it is one of its boundaries."""
    number, rest = divmod(step, period(program, resolved, run))
    inside = 0 < step < resolved.num_steps[run.id]
    return number if inside and not rest else None


def next_stop(
    program: ExpandedExperiment, resolved: ResolvedExperiment, run: RunSpec, step: int
) -> int:
    """The first boundary after this step, or the run's end."""
    length = period(program, resolved, run)
    return min((step // length + 1) * length, resolved.num_steps[run.id])


def members_of_round(
    program: ExpandedExperiment, resolved: ResolvedExperiment, circle: SyncGroup, number: int
) -> tuple[RunSpec, ...]:
    """Members that are long enough to have a boundary of this number."""
    return tuple(
        run
        for run in resolved.members[circle.cohort.id]
        if run.fold == circle.fold
        and number * period(program, resolved, run) < resolved.num_steps[run.id]
    )


def round_id(circle: SyncGroup, number: int) -> str:
    return f"sync-{circle.id}-{number:04d}"


def soup_name(merge: MergeState) -> str:
    """Of the merged weights of a round."""
    return f"soup/{merge.opened.merge}"


def rounds(state: State, circle: SyncGroup) -> tuple[MergeState, ...]:
    """Of a circle, in order."""
    return _by_circle(state).get(circle.id, ())


@remembered(by=lambda state: (state.merges,))
def _by_circle(state: State) -> dict[str, tuple[MergeState, ...]]:
    found: dict[str, tuple[MergeState, ...]] = {}
    for name, merge in state.merges.items():
        if merge.opened.is_sync:
            circle = name.removeprefix("sync-").rpartition("-")[0]
            found[circle] = (*found.get(circle, ()), merge)
    return found


def latest_closed_round(state: State, circle: SyncGroup) -> MergeState | None:
    closed = [merge for merge in rounds(state, circle) if merge.closed is not None]
    return closed[-1] if closed else None


def released_by(
    program: ExpandedExperiment, state: State, resolved: ResolvedExperiment, run: RunSpec
) -> MergeState | None:
    """The closed round that a run at a boundary goes on from: the one it took part in, or the one
    it was told to rejoin. None while it has to wait."""
    step = state.run(run.id).trained_to
    number, circle = boundary_at(program, resolved, run, step), group_of(resolved, run)
    own = state.merges.get(round_id(circle, number)) if number is not None else None
    if own is not None and any(each.run == run.id for each in own.opened.ingredients):
        return own if own.closed is not None else None
    told = state.rejoined.get(run.id)
    return state.merges[told.merge] if told is not None and told.step == step else None


def merged_weights(state: State, circle: SyncGroup, cleared: MergeState) -> Checkpoint | None:
    """What the cleared run starts from; those of a later round, if they were deleted or spoilt
    since. None: its own weights."""
    if cleared.closed is None or cleared.closed.soup is None:
        return None
    since = rounds(state, circle)[(cleared.opened.round or 1) - 1 :]
    closed = [each.closed for each in since if each.closed is not None]
    left = (state.soups.get(each.soup) for each in closed if each.soup is not None)
    return next((weights for weights in left if weights is not None), None)


@remembered(by=standing)
def at_boundary(program: ExpandedExperiment, state: State) -> tuple[RunSpec, ...]:
    """Members at a boundary, cleared or not."""
    if state.facts is None or not is_on(program):
        return ()
    resolved = resolve(program, state.facts)
    return tuple(
        run
        for run in unfinished(program, state)
        if (last := state.run(run.id).last) is not None
        and last.step == state.run(run.id).trained_to
        and boundary_at(program, resolved, run, last.step) is not None
    )
