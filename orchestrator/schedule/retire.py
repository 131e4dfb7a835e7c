"""Retention: checkpoints that nothing can choose any more are deleted, newest first kept.

Kept: the last of each run (a restart begins there) and of its average, whatever soup.ingredients
may still choose of either, and whatever an unfinished merge names. A checkpoint is retired only
after a newer one counts, or when it is spare.
"""

from collections.abc import Iterator

from orchestrator.program import Program, Resolved, resolve
from orchestrator.schedule import afterwards, observe
from orchestrator.schedule.choose import chosen, representative
from orchestrator.state import RunState, State
from workers.types import AnyOrder, Checkpoint, RetireOrder, run_of


def checkpoints(program: Program, state: State) -> Iterator[AnyOrder]:
    if state.facts is None or any(order.what == "retire" for order in state.open.values()):
        return
    resolved = resolve(program, state.facts)
    superseded = [
        checkpoint
        for owner, run in state.runs.items()
        for checkpoint in _superseded(program, resolved, owner, run)
    ]
    spare = tuple(checkpoint for run in state.runs.values() for checkpoint in run.spare)
    merged = tuple(state.soups[name] for name in afterwards.superseded(program, state))
    if not superseded and not spare and not merged:
        return
    pinned = _pinned(program, state)
    gone = tuple(checkpoint for checkpoint in superseded if checkpoint.name not in pinned)
    if gone or spare or merged:
        yield RetireOrder(checkpoints=gone + spare + merged)


def _is_stage(run_id: str) -> bool:
    return run_id.startswith(("probe-", "trunk-"))


def _superseded(
    program: Program, resolved: Resolved, owner: str, run: RunState
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


def _kept(program: Program, resolved: Resolved, owner: str, run: RunState) -> set[str]:
    kept = {run.checkpoints[-1].checkpoint.id}
    if _is_stage(owner):
        return kept
    per_epoch = resolved.steps_per_epoch[run_of(owner)]
    kept |= {e.checkpoint.id for e in chosen(run, program.experiment.soup, per_epoch)}
    kept |= {e.checkpoint.id for e in run.scored[-1:]}
    stands_for_it = representative(program, run)
    return kept | ({stands_for_it.checkpoint.id} if stands_for_it is not None else set())


def _pinned(program: Program, state: State) -> frozenset[str]:
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
    return afterwards.pinned(program, state) | tasting | mixed


def _is_of_a_round(order: str) -> bool:
    return order.startswith(("observe-", "merge-observe-"))
