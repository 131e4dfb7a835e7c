"""Which checkpoints a run has according to the ledger, and the step they prove.

add_checkpoint     one is complete; the first of its step counts
drop_checkpoints   some were deleted
drop_corrupt       the bytes of one are not what was written: an older one takes over
rewind_before      likewise between two drivers: training writes it, and all later ones, again
"""

from collections.abc import Set

from orchestrator.state.state import RunState
from workers.types import Checkpoint, Checkpointed, run_id_of


def add_checkpoint(run: RunState, event: Checkpointed) -> None:
    """A second checkpoint of a step has the weights of the first and is a duplicate: the worker
    died between the checkpoint of the moving average and the run's own, and both were repeated."""
    by_step = {earlier.checkpoint.step: earlier for earlier in run.checkpoints}
    first = by_step.setdefault(event.checkpoint.step, event)
    if first.checkpoint.id != event.checkpoint.id:
        _add_duplicate(run, event.checkpoint)
    elif first is event:
        _set_checkpoints(run, tuple(by_step[step] for step in sorted(by_step)))


def _set_checkpoints(run: RunState, checkpoints: tuple[Checkpointed, ...]) -> None:
    run.checkpoints = checkpoints
    run.scored = tuple(event for event in checkpoints if event.score is not None)
    run.by_name = {event.checkpoint.name: event for event in checkpoints}


def _add_duplicate(run: RunState, checkpoint: Checkpoint) -> None:
    others = (other for other in run.duplicates if other.id != checkpoint.id)
    run.duplicates = (*others, checkpoint)


def drop_checkpoints(run: RunState, gone: Set[str]) -> None:
    run.duplicates = tuple(c for c in run.duplicates if c.id not in gone)
    left = tuple(event for event in run.checkpoints if event.checkpoint.id not in gone)
    if len(left) < len(run.checkpoints):
        _set_checkpoints(run, left)


def drop_corrupt(runs: dict[str, RunState], checkpoint: str) -> None:
    """Rewind a run together with its moving average: the average gets its last checkpoint again
    only by training again from before it. A corrupt one of the run leaves the average as it is."""
    owner = checkpoint.partition("/")[0]
    if owner not in runs:
        return
    run = runs.get(run_id_of(owner), RunState())
    lost = [e.checkpoint.step for e in runs[owner].checkpoints if e.checkpoint.id == checkpoint]
    _rewind(runs[owner], checkpoint)
    if run_id_of(owner) != owner and run.last is not None and lost == [run.last.step]:
        last = run.last
        _rewind(run, last.id)
        _add_duplicate(run, last)


def _rewind(run: RunState, checkpoint: str) -> None:
    """Without its last checkpoint a run is trained less far, and it has not ended early."""
    num_before = len(run.checkpoints)
    drop_checkpoints(run, frozenset([checkpoint]))
    reached = run.last.step if run.last is not None else 0
    if len(run.checkpoints) < num_before and reached < run.trained_to:
        run.trained_to, run.ended_early = reached, False


def rewind_before(runs: dict[str, RunState], checkpoint: str) -> None:
    """Continue the run from before a corrupt checkpoint that may be a soup's ingredient: without it
    the soup would silently be another. Training writes the later ones again, with equal weights.

    No attempt of the run may be in flight.
    """
    owner = checkpoint.partition("/")[0]
    if owner not in runs:
        return
    steps = [e.checkpoint.step for e in runs[owner].checkpoints if e.checkpoint.id == checkpoint]
    drop_checkpoints(runs[owner], frozenset([checkpoint]))
    run = runs.get(run_id_of(owner))
    if not steps or run is None:
        return
    later = [e.checkpoint for e in run.checkpoints if e.checkpoint.step >= steps[0]]
    drop_checkpoints(run, frozenset(each.id for each in later))
    for each in later:
        _add_duplicate(run, each)
    run.trained_to = min(run.trained_to, run.last.step if run.last is not None else 0)
    run.ended_early = False
