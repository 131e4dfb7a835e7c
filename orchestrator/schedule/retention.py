"""Retention: checkpoints that nothing can choose any more are deleted, newest first kept.

A sync round's checkpoints stay while a run reads them; its merged weights go once no run continues
from them and their scores are in the ledger.
"""

from collections.abc import Iterator
from itertools import chain

from orchestrator.schedule import sync_rounds
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.sync_merges import is_scored
from orchestrator.schedule.sync_rounds import merged_soup_name
from orchestrator.state.state import MergeState, State
from workers.types import AnyOrder, DiversityOrder, Ingredient, RetireOrder, ScoreOrder


def retire_orders(moment: Moment) -> Iterator[AnyOrder]:
    """One at a time, of everything that may go."""
    state, index = moment.state, moment.index
    if any(order.what == "retire" for order in state.open.values()):
        return
    superseded = list(chain.from_iterable(index.superseded))
    duplicates = tuple(chain.from_iterable(index.duplicates))
    merged = tuple(state.soups[name] for name in _superseded_soups(moment))
    if not superseded and not duplicates and not merged:
        return
    pinned = _pinned(moment)
    gone = tuple(checkpoint for checkpoint in superseded if checkpoint.name not in pinned)
    if gone or duplicates or merged:
        yield RetireOrder(checkpoints=gone + duplicates + merged)


def _pinned(moment: Moment) -> set[str]:
    """Names that an unfinished merge may still taste, or a soup yet to be written needs."""
    state = moment.state
    unmixed = [merge for merge in state.unmixed.values() if not merge.opened.is_sync]
    if any(map(_is_of_a_round, state.open)):
        unmixed += [merge for merge in state.merges.values() if merge.abandoned is not None]
    tasted = {ingredient.name for merge in unmixed for ingredient in merge.opened.ingredients}
    soups = (merge.soup for merge in state.finals.values() if merge.soup is not None)
    mixed = {name for soup in soups for name in soup.mix.names}
    return tasted | mixed | _read_by_rounds(moment)


def _is_of_a_round(order: str) -> bool:
    """Whether the order is of an observe round, which may have been abandoned meanwhile."""
    return order.startswith(("observe-", "merge-observe-"))


def _read_by_rounds(moment: Moment) -> set[str]:
    """Names of checkpoints that a sync round may still read."""
    if not moment.expanded.is_sync:
        return set()
    return {
        member.name
        for group in sync_rounds.sync_groups(moment.resolved)
        for merge in sync_rounds.rounds_of(moment, group)
        if _is_read(moment, merge)
        for member in merge.opened.ingredients
    }


def _is_read(moment: Moment, merge: MergeState) -> bool:
    if merge.closed is None and sync_rounds.is_under_way(moment):
        return True
    diversity = DiversityOrder.id_of(merge.opened.merge)
    if merge.diversity is None and diversity not in moment.state.gave_up:
        return True
    averages = moment.config.merge.optimizer_state == "average"
    members = merge.opened.ingredients
    return averages and any(_is_still_there(moment, member) for member in members)


def _is_still_there(moment: Moment, member: Ingredient) -> bool:
    """The run has not gone beyond what it brought to the round."""
    run = moment.run(member.run)
    return run.failed is None and run.last is not None and run.last.name == member.name


def _superseded_soups(moment: Moment) -> Iterator[str]:
    """Names of merged weights that no run continues from any more, and that are scored."""
    if not moment.expanded.is_sync:
        return
    in_use = {
        merged.name
        for run in sync_rounds.at_boundary(moment)
        if (released := sync_rounds.released_by(moment, run)) is not None
        and (
            merged := sync_rounds.merged_weights(
                moment, sync_rounds.group_of(moment.resolved, run), released
            )
        )
    }
    for group in sync_rounds.sync_groups(moment.resolved):
        newest = sync_rounds.latest_closed_round(moment, group)
        for merge in sync_rounds.rounds_of(moment, group):
            name = merged_soup_name(merge)
            if merge is newest or merge.closed is None or name in in_use:
                continue
            if name in moment.state.soups and _is_reported(moment.state, merge):
                yield name


def _is_reported(state: State, merge: MergeState) -> bool:
    gave_up = ScoreOrder.id_of(merged_soup_name(merge)) in state.gave_up
    return is_scored(state, merge) or gave_up
