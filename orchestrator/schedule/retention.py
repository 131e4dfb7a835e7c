"""Retention: checkpoints that nothing can choose any more are deleted, newest first kept.

A sync round's checkpoints stay while somebody reads them; its merged weights go once no run
continues from them and their scores are in the ledger.
"""

from collections.abc import Iterator

from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.schedule import observe, retention, sync_rounds
from orchestrator.schedule.ingredients import representative_checkpoint, selected_checkpoints
from orchestrator.schedule.sync_merges import is_scored
from orchestrator.state.state import MergeState, RunState, State
from workers.types import (
    AnyOrder,
    Checkpoint,
    Ingredient,
    RetireOrder,
    run_id_of,
)


def checkpoints(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    if state.facts is None or any(order.what == "retire" for order in state.open.values()):
        return
    resolved = resolve(program, state.facts)
    superseded = [
        checkpoint
        for owner, run in state.runs.items()
        for checkpoint in _superseded(program, resolved, owner, run)
    ]
    spare = tuple(checkpoint for run in state.runs.values() for checkpoint in run.duplicates)
    merged = tuple(state.soups[name] for name in retention.superseded(program, state))
    if not superseded and not spare and not merged:
        return
    pinned = _pinned(program, state)
    gone = tuple(checkpoint for checkpoint in superseded if checkpoint.name not in pinned)
    if gone or spare or merged:
        yield RetireOrder(checkpoints=gone + spare + merged)


def _is_stage(run_id: str) -> bool:
    return run_id.startswith(("probe-", "trunk-"))


def _superseded(
    program: ExpandedExperiment, resolved: ResolvedExperiment, owner: str, run: RunState
) -> tuple[Checkpoint, ...]:
    if len(run.checkpoints) < 2:
        return ()
    soup = program.experiment.soup
    key = ("superseded", soup.ingredients, soup.metric)
    if key not in run.known:
        kept = _kept(program, resolved, owner, run)
        events = (event for event in run.checkpoints if event.checkpoint.id not in kept)
        run.known[key] = tuple(event.checkpoint for event in events)
    found: tuple[Checkpoint, ...] = run.known[key]
    return found


def _kept(
    program: ExpandedExperiment, resolved: ResolvedExperiment, owner: str, run: RunState
) -> set[str]:
    kept = {run.checkpoints[-1].checkpoint.id}
    if _is_stage(owner):
        return kept
    per_epoch = resolved.steps_per_epoch[run_id_of(owner)]
    kept |= {e.checkpoint.id for e in selected_checkpoints(run, program.experiment.soup, per_epoch)}
    kept |= {e.checkpoint.id for e in run.scored[-1:]}
    stands_for_it = representative_checkpoint(program, run)
    return kept | ({stands_for_it.checkpoint.id} if stands_for_it is not None else set())


def _pinned(program: ExpandedExperiment, state: State) -> frozenset[str]:
    """Names that an unfinished merge may still taste, or a soup yet to be written needs."""
    rounds_matter = observe.is_on(program, state) or any(map(_is_of_a_round, state.open))
    unfinished = [
        merge
        for merge in state.merges.values()
        if merge.soup is None
        and (merge.opened.is_final or (merge.opened.observe and rounds_matter))
    ]
    tasting = {i.name for merge in unfinished for i in merge.opened.ingredients}
    finals = [m for m in state.merges.values() if m.soup is not None and m.opened.is_final]
    mixed = {name for merge in finals if merge.soup for name in merge.soup.mix.names}
    return retention.pinned(program, state) | tasting | mixed


def _is_of_a_round(order: str) -> bool:
    return order.startswith(("observe-", "merge-observe-"))


def pinned(program: ExpandedExperiment, state: State) -> frozenset[str]:
    """Names of checkpoints that a round may still read."""
    if state.facts is None or not sync_rounds.is_on(program):
        return frozenset()
    named = {
        each.name
        for circle in sync_rounds.sync_groups(resolve(program, state.facts))
        for merge in sync_rounds.rounds(state, circle)
        if _is_read(program, state, merge)
        for each in merge.opened.ingredients
    }
    return frozenset(named)


def _is_read(program: ExpandedExperiment, state: State, merge: MergeState) -> bool:
    if merge.closed is None and sync_rounds.is_under_way(program, state):
        return True
    if merge.diversity is None and f"diversity-{merge.opened.merge}" not in state.gave_up:
        return True
    averages = program.experiment.merge.optimizer_state == "average"
    return averages and any(_stands(state, each) for each in merge.opened.ingredients)


def _stands(state: State, member: Ingredient) -> bool:
    """It has not gone beyond what it brought to the round."""
    known = state.run(member.run)
    return known.failed is None and known.last is not None and known.last.name == member.name


def superseded(program: ExpandedExperiment, state: State) -> Iterator[str]:
    """Names of merged weights that nobody goes on from any more, and that have been told of."""
    if state.facts is None or not sync_rounds.is_on(program):
        return
    resolved = resolve(program, state.facts)
    in_use = {
        merged.name
        for run in sync_rounds.at_boundary(program, state)
        if (cleared := sync_rounds.released_by(program, state, resolved, run)) is not None
        and (
            merged := sync_rounds.merged_weights(
                state, sync_rounds.group_of(resolved, run), cleared
            )
        )
    }
    for circle in sync_rounds.sync_groups(resolved):
        newest = sync_rounds.latest_closed_round(state, circle)
        for merge in sync_rounds.rounds(state, circle):
            name = sync_rounds.soup_name(merge)
            if merge is newest or merge.closed is None or name in in_use:
                continue
            if name in state.soups and _is_told_of(state, merge):
                yield name


def _is_told_of(state: State, merge: MergeState) -> bool:
    gave_up = f"score-{sync_rounds.soup_name(merge).replace('/', '_')}" in state.gave_up
    return is_scored(state, merge) or gave_up
