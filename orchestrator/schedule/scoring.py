"""Scores on every split, once nothing can be selected by them any more.

A run's representative, and that of its moving average, is scored when the run has ended, a soup
when it is written. Recipes see selection scores alone, whatever the order of events.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.schedule import final_merges
from orchestrator.schedule.ingredients import (
    checkpoint_event,
    representative_checkpoint,
    selection,
    usable_variants,
)
from orchestrator.schedule.training import all_settled, in_flight, standing
from orchestrator.state.remember import remembered
from orchestrator.state.state import State
from workers.types import (
    AnyOrder,
    Checkpoint,
    Checkpointed,
    CompareOrder,
    RunSpec,
    Score,
    ScoreOrder,
    digest,
    dump_without_defaults,
    run_id_of,
)


def runs(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    if state.facts is not None:
        busy = in_flight(state)
        yield from (order for run, order in _unscored(program, state) if run_id_of(run) not in busy)


@remembered(by=lambda program, state: (*standing(program, state), state.scores))
def _unscored(program: ExpandedExperiment, state: State) -> tuple[tuple[str, ScoreOrder], ...]:
    """(track, order) of every usable track whose representative lacks a score."""
    assert state.facts is not None
    resolved = resolve(program, state.facts)
    return tuple(
        (run.id, _score_order(resolved, run, event.checkpoint))
        for run, event in _represented(program, state)
        if _lacks(state, event.checkpoint.name, resolved.report_splits)
    )


def _score_order(resolved: ResolvedExperiment, run: RunSpec, checkpoint: Checkpoint) -> ScoreOrder:
    order = resolved.orders.get(f"score {run.id}")
    if not isinstance(order, ScoreOrder) or order.checkpoint is not checkpoint:
        cohort, splits = resolved.cohort_of[run_id_of(run.id)], resolved.report_splits
        order = ScoreOrder(cohort=cohort, checkpoint=checkpoint, splits=splits)
        resolved.orders[f"score {run.id}"] = order
    return order


def ended_variants(
    program: ExpandedExperiment, state: State, resolved: ResolvedExperiment
) -> tuple[tuple[RunSpec, Checkpointed], ...]:
    """Usable tracks that are over, with the checkpoint that stands for each."""
    busy = in_flight(state)
    return tuple(pair for pair in _represented(program, state) if run_id_of(pair[0].id) not in busy)


@remembered(by=standing)
def _represented(
    program: ExpandedExperiment, state: State
) -> tuple[tuple[RunSpec, Checkpointed], ...]:
    assert state.facts is not None
    resolved = resolve(program, state.facts)
    return tuple(
        (track, event)
        for track in usable_variants(state, resolved, program.variants)
        if (event := representative_checkpoint(program, state.run(track.id))) is not None
    )


def soups(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """A soup of one member is that member: its scores are known."""
    if state.facts is None:
        return
    resolved = resolve(program, state.facts)
    for final, name in final_merges.written_soups(program, state):
        if single_member_of(state, final) is None and _lacks(state, name, resolved.splits):
            checkpoint = state.soups[name]
            yield ScoreOrder(cohort=final.cohort, checkpoint=checkpoint, splits=resolved.splits)


def single_member_of(state: State, final: final_merges.Final) -> str | None:
    """The one ingredient that the soup is, if it is one; the base alone has no scores."""
    made = state.merges[final.id].soup
    member = made.mix.single if made is not None else None
    return member if member not in state.bases else None


def _lacks(state: State, name: str, splits: tuple[str, ...]) -> bool:
    known = state.scores.get(name, {})
    return any(split not in known for split in splits)


def scores_of(state: State, name: str) -> dict[str, Score]:
    """Everything known of a checkpoint, by split; a run's selection score came with training."""
    known = dict(state.scores.get(name, {}))
    if not name.startswith(("soup/", "base/")):
        score = checkpoint_event(state, name).score
        known = {"val": score, **known} if score is not None else known
    return known


def scores_of_soup(state: State, final: final_merges.Final, name: str) -> dict[str, Score]:
    member = single_member_of(state, final)
    return scores_of(state, member if member is not None else name)


def comparison(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    order = compare_order(program, state)
    if order is not None and order.key not in state.compared:
        yield order


@remembered(by=lambda program, state: (program, state))
def is_complete(program: ExpandedExperiment, state: State) -> bool:
    """Every soup is made, and all that will be scored has been."""
    if not all_settled(program, state) or not final_merges.is_complete(program, state):
        return False
    pending = chain(runs(program, state), soups(program, state))
    return all(order.id in state.gave_up for order in pending)


def compare_order(program: ExpandedExperiment, state: State) -> CompareOrder | None:
    """Who is compared with whom; None while scores are to come, or when there are none at all."""
    if state.facts is None or not is_complete(program, state):
        return None
    singles = scored_variants(program, state)
    resolved = resolve(program, state.facts)
    return _compare(program, state, resolved, singles) if singles else None


def scored_variants(
    program: ExpandedExperiment, state: State
) -> list[tuple[RunSpec, Checkpointed]]:
    """Tracks that are over, with the checkpoint that stands for each, scored on every split."""
    assert state.facts is not None
    resolved = resolve(program, state.facts)
    return [
        (r, e)
        for r, e in ended_variants(program, state, resolved)
        if _is_scored(state, resolved, e)
    ]


def _is_scored(state: State, resolved: ResolvedExperiment, event: Checkpointed) -> bool:
    return not _lacks(state, event.checkpoint.name, resolved.report_splits)


def _compare(
    program: ExpandedExperiment,
    state: State,
    resolved: ResolvedExperiment,
    singles: list[tuple[RunSpec, Checkpointed]],
) -> CompareOrder:
    soups = {predictions_of(state, f, n): n for f, n in final_merges.written_soups(program, state)}
    scored = {id for id, name in soups.items() if id != name or not _missing(state, resolved, name)}
    ensemble = program.experiment.ensemble
    votes, stacks = ensemble.soft_voting and len(singles) > 1, ensemble.stacking
    stacked = groups(program, singles) if stacks else ()
    ids = {track.id: event.checkpoint.id for track, event in singles}
    return CompareOrder(
        best_single=best_single(program, singles)[1].checkpoint.id,
        soups=tuple(sorted(scored)),
        members=tuple(ids.values()) if votes else (),
        splits=resolved.splits,
        stacking=tuple(tuple(ids[track.id] for track in group) for group in stacked),
        folds={ids[t.id]: t.fold for group in stacked for t in group if t.fold is not None},
    )


def _missing(state: State, resolved: ResolvedExperiment, name: str) -> bool:
    return _lacks(state, name, resolved.splits)


def best_single(
    program: ExpandedExperiment, singles: list[tuple[RunSpec, Checkpointed]]
) -> tuple[RunSpec, Checkpointed]:
    """Highest selection score; ties go to the smaller run id, as in every recipe."""
    metric = program.experiment.soup.metric
    return min(singles, key=lambda pair: (-selection(pair[1], metric), pair[0].id))


def predictions_of(state: State, final: final_merges.Final, name: str) -> str:
    """Id under which a soup's predictions lie: a soup of one member shares the member's."""
    member = single_member_of(state, final)
    return name if member is None else checkpoint_event(state, member).checkpoint.id


Single = tuple[RunSpec, Checkpointed]


def groups(
    program: ExpandedExperiment, singles: Sequence[Single]
) -> tuple[tuple[RunSpec, ...], ...]:
    """In configured order, a group in order of folds. A setting that lost a run to a failure is
    left out: it has no answer for that fold. Empty when there is nothing to combine."""
    found: dict[Any, list[RunSpec]] = {}
    for track, _ in singles:
        found.setdefault(_setting(track), []).append(track)
    folds = program.experiment.data.folds or 1
    whole = [tuple(group) for group in found.values() if len(group) == folds]
    return tuple(whole) if sum(map(len, whole)) > 1 else ()


def _setting(track: RunSpec) -> tuple[Any, ...]:
    """What members of one group have in common: all but the fold."""
    trained = digest([dump_without_defaults(track.model), dump_without_defaults(track.train)], 64)
    return track.role, track.seed, track.replica, trained
