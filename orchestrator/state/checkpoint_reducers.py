"""What counts: which checkpoints a run has in the ledger's eyes, and how far it has come by them.

filed             a checkpoint is complete; the first of its step counts
without           checkpoints are deleted
without_corrupt   the bytes of one are not what was written: an older one takes over
"""

from collections.abc import Mapping, Set
from dataclasses import replace

from orchestrator.state.state import EMPTY_RUN, RunState
from workers.types import Checkpoint, Checkpointed, run_id_of


def add_checkpoint(run: RunState, event: Checkpointed) -> RunState:
    """A second checkpoint of a step has the weights of the first and is spare: the worker died
    between an average's checkpoint and the run's own, and both were made again."""
    known = {each.checkpoint.step: each for each in run.checkpoints}
    first = known.setdefault(event.checkpoint.step, event)
    if first.checkpoint.id != event.checkpoint.id:
        return replace(run, duplicates=_and_spare(run, event.checkpoint))
    return replace(run, checkpoints=tuple(known[step] for step in sorted(known)))


def _and_spare(run: RunState, checkpoint: Checkpoint) -> tuple[Checkpoint, ...]:
    return (*(each for each in run.duplicates if each.id != checkpoint.id), checkpoint)


def drop_checkpoints(run: RunState, gone: Set[str]) -> RunState:
    """The same object if none of these ids is the run's."""
    kept = tuple(event for event in run.checkpoints if event.checkpoint.id not in gone)
    spare = tuple(checkpoint for checkpoint in run.duplicates if checkpoint.id not in gone)
    if len(kept) == len(run.checkpoints) and len(spare) == len(run.duplicates):
        return run
    return replace(run, checkpoints=kept, duplicates=spare)


def drop_corrupt(runs: Mapping[str, RunState], checkpoint: str) -> Mapping[str, RunState]:
    """A run goes back together with its moving average: the average gets its last checkpoint back
    only by training again from before it. A run's own leaves the average what it has."""
    owner = checkpoint.partition("/")[0]
    if owner not in runs:
        return runs
    changed = {**runs, owner: _rewind(runs[owner], checkpoint)}
    run = runs.get(run_id_of(owner), EMPTY_RUN)
    lost = [e.checkpoint.step for e in runs[owner].checkpoints if e.checkpoint.id == checkpoint]
    if run_id_of(owner) != owner and run.last is not None and lost == [run.last.step]:
        earlier = _rewind(run, run.last.id)
        changed[run_id_of(owner)] = replace(earlier, duplicates=_and_spare(earlier, run.last))
    return changed


def _rewind(run: RunState, checkpoint: str) -> RunState:
    """Without its last checkpoint a run has not been trained so far, nor has it ended early."""
    left = drop_checkpoints(run, frozenset([checkpoint]))
    reached = left.last.step if left.last is not None else 0
    if left is run or reached >= run.trained_to:
        return left
    return replace(left, trained_to=reached, ended_early=False)
