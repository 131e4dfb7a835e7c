"""Sync rounds: where their boundaries are, which runs are at one, and the state of each round.

run A   |=======|boundary 1|=======|boundary 2|=======|end
run B   |=======|boundary 1|=======|boundary 2|=======|=======|boundary 3| ...

A boundary comes after every `merge.every` of a run's own epochs, or steps. The end of a run is no
boundary, because nothing continues from there. A sync group is the runs that are merged with one
another: those of a cohort. With folds, only runs of the same fold are merged; otherwise a run would
see its held-out images through its peers.
"""

from dataclasses import dataclass

from orchestrator.experiment.resolved import ResolvedExperiment
from orchestrator.schedule.moment import Moment, once
from orchestrator.state.state import MergeState
from workers.config.train import period_steps
from workers.types import Checkpoint, Cohort, MergeOpened, RunSpec


@dataclass(frozen=True, eq=False)
class SyncGroup:
    cohort: Cohort
    fold: int | None

    @property
    def series(self) -> str:
        """What the ids of its rounds have in common."""
        group = self.cohort.id if self.fold is None else f"{self.cohort.id}-fold{self.fold}"
        return f"sync-{group}"

    def round_id(self, number: int) -> str:
        return MergeOpened.round_id(self.series, number)


def sync_groups(resolved: ResolvedExperiment) -> tuple[SyncGroup, ...]:
    """In configured order."""
    runs = [run for cohort in resolved.cohorts for run in resolved.members[cohort.id]]
    groups = [group_of(resolved, run) for run in runs]
    return tuple({group.series: group for group in groups}.values())


def group_of(resolved: ResolvedExperiment, run: RunSpec) -> SyncGroup:
    return SyncGroup(resolved.cohort_of[run.id], run.fold)


def is_under_way(moment: Moment) -> bool:
    """Rounds may still open and close: training goes on, and at least one run is unfinished."""
    going = moment.expanded.is_sync and moment.state.finish_reason is None
    return going and any(True for _ in moment.unfinished_runs)


def period(resolved: ResolvedExperiment, run: RunSpec) -> int:
    """Steps of the run between boundaries."""
    every = resolved.expanded.experiment.merge.every
    steps = period_steps(every, resolved.steps_per_epoch[run.id])
    assert steps is not None, "merge.every was validated"
    return steps


def boundary_at(resolved: ResolvedExperiment, run: RunSpec, step: int) -> int | None:
    """Number of the round that the run awaits at this step. None: the step is no boundary."""
    number, rest = divmod(step, period(resolved, run))
    inside = 0 < step < resolved.num_steps[run.id]
    return number if inside and not rest else None


def next_stop(resolved: ResolvedExperiment, run: RunSpec, step: int) -> int:
    """The first boundary after this step, or the run's end."""
    length = period(resolved, run)
    return min((step // length + 1) * length, resolved.num_steps[run.id])


def members_of_round(
    resolved: ResolvedExperiment, group: SyncGroup, number: int
) -> tuple[RunSpec, ...]:
    """Members that are long enough to have a boundary of this number."""
    return tuple(
        run
        for run in resolved.members[group.cohort.id]
        if run.fold == group.fold and number * period(resolved, run) < resolved.num_steps[run.id]
    )


def merged_soup_name(merge: MergeState) -> str:
    """Name of the merged weights of a round."""
    return f"soup/{merge.opened.merge}"


def rounds_of(moment: Moment, group: SyncGroup) -> tuple[MergeState, ...]:
    """The rounds of a group, in order."""
    return tuple(_rounds_by_series(moment).get(group.series, ()))


@once
def _rounds_by_series(moment: Moment) -> dict[str, list[MergeState]]:
    rounds: dict[str, list[MergeState]] = {}
    for merge in moment.state.merges.values():
        if merge.opened.is_sync:
            rounds.setdefault(merge.opened.series, []).append(merge)
    return rounds


def latest_closed_round(moment: Moment, group: SyncGroup) -> MergeState | None:
    closed = [merge for merge in rounds_of(moment, group) if merge.closed is not None]
    return closed[-1] if closed else None


def released_by(moment: Moment, run: RunSpec) -> MergeState | None:
    """The closed round that a run at a boundary continues from: the one it took part in, or the
    one it rejoins. None: it has to wait."""
    step, state = moment.run(run.id).trained_to, moment.state
    number, group = boundary_at(moment.resolved, run, step), group_of(moment.resolved, run)
    own = state.merges.get(group.round_id(number)) if number is not None else None
    if own is not None and any(member.run == run.id for member in own.opened.ingredients):
        return own if own.closed is not None else None
    rejoined = state.rejoined.get(run.id)
    return state.merges[rejoined.merge] if rejoined is not None and rejoined.step == step else None


def merged_weights(moment: Moment, group: SyncGroup, released: MergeState) -> Checkpoint | None:
    """What a run released by this round starts from. Weights of a later round take the place of
    deleted or corrupt ones. None: the run's own weights."""
    if released.closed is None or released.closed.soup is None:
        return None
    since = rounds_of(moment, group)[(released.opened.round or 1) - 1 :]
    closed = [merge.closed for merge in since if merge.closed is not None]
    soups = moment.state.soups
    left = (soups.get(ending.soup) for ending in closed if ending.soup is not None)
    return next((weights for weights in left if weights is not None), None)


@once
def at_boundary(moment: Moment) -> tuple[RunSpec, ...]:
    """Runs at a boundary, released or not."""
    if not moment.expanded.is_sync:
        return ()
    return tuple(
        run
        for run in moment.unfinished_runs
        if (last := moment.run(run.id).last) is not None
        and last.step == moment.run(run.id).trained_to
        and boundary_at(moment.resolved, run, last.step) is not None
    )
