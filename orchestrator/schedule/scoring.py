"""Scores on every split, once nothing can be selected by them any more.

A run's representative, and that of its moving average, is scored when the run has ended, a soup
when it is written. Recipes see selection scores alone, whatever the order of events.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from orchestrator.schedule.final_merges import (
    FinalMerge,
    all_merges_ended,
    written_soups,
)
from orchestrator.schedule.ingredients import selection
from orchestrator.schedule.moment import Moment, once
from orchestrator.state.state import State
from workers.types import (
    AnyOrder,
    Checkpointed,
    CompareOrder,
    RunSpec,
    Score,
    ScoreOrder,
    digest,
    dump_without_defaults,
    run_id_of,
)

Scored = tuple[RunSpec, Checkpointed]
"""A run or moving average, and the checkpoint that represents it."""


def score_orders(moment: Moment) -> Iterator[ScoreOrder]:
    """One per usable run or average whose representative lacks a score."""
    resolved = moment.resolved
    for variant, event in moment.index.unscored:
        run = run_id_of(variant.id)
        if run not in moment.in_flight:
            cohort = resolved.cohort_of[run]
            yield ScoreOrder(
                cohort=cohort, checkpoint=event.checkpoint, splits=resolved.report_splits
            )


@once
def ended_variants(moment: Moment) -> tuple[Scored, ...]:
    """Usable runs and averages that are over."""
    pairs = moment.represented_variants
    return tuple(pair for pair in pairs if run_id_of(pair[0].id) not in moment.in_flight)


def soup_score_orders(moment: Moment) -> Iterator[ScoreOrder]:
    """A soup of one member is that member: its scores are known."""
    splits = moment.resolved.splits
    for final, name in written_soups(moment):
        if single_member_of(moment.state, final) is None and lacks(moment.state, name, splits):
            checkpoint = moment.state.soups[name]
            yield ScoreOrder(cohort=final.cohort, checkpoint=checkpoint, splits=splits)


def single_member_of(state: State, final: FinalMerge) -> str | None:
    """The one ingredient that the soup is, if it is one; the base alone has no scores."""
    soup = state.merges[final.id].soup
    member = soup.mix.single if soup is not None else None
    return member if member not in state.bases else None


def lacks(state: State, name: str, splits: tuple[str, ...]) -> bool:
    """Whether the checkpoint has no score on one of the splits."""
    scores = state.scores.get(name, {})
    return any(split not in scores for split in splits)


def scores_of(state: State, name: str) -> dict[str, Score]:
    """All scores of a checkpoint, by split; a run's selection score came with training."""
    scores = dict(state.scores.get(name, {}))
    if not name.startswith(("soup/", "base/")):
        score = state.checkpoint_event(name).score
        scores = {"val": score, **scores} if score is not None else scores
    return scores


def scores_of_soup(state: State, final: FinalMerge, name: str) -> dict[str, Score]:
    member = single_member_of(state, final)
    return scores_of(state, member if member is not None else name)


@once
def all_is_scored(moment: Moment) -> bool:
    """Every soup is made, and all that will be scored has been."""
    if not moment.all_runs_ended or not all_merges_ended(moment):
        return False
    pending = chain(score_orders(moment), soup_score_orders(moment))
    return all(order.id in moment.state.gave_up for order in pending)


def compare_orders(moment: Moment) -> Iterator[AnyOrder]:
    order = comparison(moment)
    if order is not None and order.key not in moment.state.compared:
        yield order


@once
def comparison(moment: Moment) -> CompareOrder | None:
    """What is compared with what. None: scores are to come, or there are none at all."""
    if not all_is_scored(moment):
        return None
    singles = scored_variants(moment)
    return _comparison(moment, singles) if singles else None


@once
def scored_variants(moment: Moment) -> tuple[Scored, ...]:
    """Runs and averages that are over, scored on every split."""
    splits = moment.resolved.report_splits
    return tuple(
        (variant, event)
        for variant, event in ended_variants(moment)
        if not lacks(moment.state, event.checkpoint.name, splits)
    )


def _comparison(moment: Moment, singles: Sequence[Scored]) -> CompareOrder:
    state, splits, ensemble = moment.state, moment.resolved.splits, moment.config.ensemble
    soups = {predictions_of(state, final, name): name for final, name in written_soups(moment)}
    scored = {id for id, name in soups.items() if id != name or not lacks(state, name, splits)}
    votes = ensemble.soft_voting and len(singles) > 1
    stacked = stacking_groups(moment, singles) if ensemble.stacking else ()
    ids = {variant.id: event.checkpoint.id for variant, event in singles}
    return CompareOrder(
        best_single=best_single(moment, singles)[1].checkpoint.id,
        soups=tuple(sorted(scored)),
        members=tuple(ids.values()) if votes else (),
        splits=splits,
        stacking=tuple(tuple(ids[variant.id] for variant in group) for group in stacked),
        folds={ids[v.id]: v.fold for group in stacked for v in group if v.fold is not None},
    )


def best_single(moment: Moment, singles: Sequence[Scored]) -> Scored:
    """Highest selection score; ties go to the smaller run id, as in every recipe."""
    metric = moment.config.soup.metric
    return min(singles, key=lambda pair: (-selection(pair[1], metric), pair[0].id))


def predictions_of(state: State, final: FinalMerge, name: str) -> str:
    """Id of a soup's predictions: a soup of one member shares the member's."""
    member = single_member_of(state, final)
    return name if member is None else state.checkpoint_event(member).checkpoint.id


def stacking_groups(moment: Moment, singles: Sequence[Scored]) -> tuple[tuple[RunSpec, ...], ...]:
    """Members of the stacked classifier, in configured order, a group in order of folds.

    A setting that lost a run to a failure is left out: it has no answer for that fold. Empty when
    there is nothing to combine.
    """
    by_setting: dict[Any, list[RunSpec]] = {}
    for variant, _ in singles:
        by_setting.setdefault(_setting(variant), []).append(variant)
    folds = moment.config.data.folds or 1
    whole = [tuple(group) for group in by_setting.values() if len(group) == folds]
    return tuple(whole) if sum(map(len, whole)) > 1 else ()


def _setting(variant: RunSpec) -> tuple[Any, ...]:
    """What members of one group have in common: all but the fold."""
    parts = [dump_without_defaults(variant.model), dump_without_defaults(variant.train)]
    return variant.role, variant.seed, variant.replica, digest(parts, 64)
