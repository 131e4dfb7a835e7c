"""Analysis: once everything is compared, what the models have in common is worked out.

    compared -> (a taste midway between the best single model and the served soup) -> analyse

It chooses nothing, and nothing waits for it: given up, it is missing from the report.
"""

from collections.abc import Iterator, Sequence

from orchestrator.schedule.final_merges import FinalMerge, written_soups
from orchestrator.schedule.ingredients import selection
from orchestrator.schedule.moment import Moment, once
from orchestrator.schedule.scoring import (
    Scored,
    best_single,
    comparison,
    predictions_of,
    scored_variants,
    scores_of_soup,
    single_member_of,
)
from orchestrator.schedule.serving import soup_to_serve
from workers.types import (
    SELECTION,
    AnalysedModel,
    AnalyseOrder,
    AnyOrder,
    Compared,
    CompareOrder,
    Mix,
    TasteOrder,
    WeightSpaceGroup,
    model_key,
    run_id_of,
)

MAX_INGREDIENTS = 40
"""Ingredients that are analysed, the best by selection score: every pair of them is compared."""


def analysis_orders(moment: Moment) -> Iterator[AnyOrder]:
    order = analyse_order(moment)
    if order is None or moment.state.analysed == order.key:
        return
    taste = _midway(moment)
    yield order if taste is None or _is_settled(moment, taste) else taste


def is_analysed(moment: Moment) -> bool:
    """Whether `analysis.json` is in the store, and of exactly what there is now."""
    order = analyse_order(moment)
    return order is not None and moment.state.analysed == order.key


@once
def analyse_order(moment: Moment) -> AnalyseOrder | None:
    """As of now: the score midway may be to come. None: not everything is compared yet."""
    pair = _compared(moment)
    if pair is None:
        return None
    order, compared = pair
    singles = scored_variants(moment)
    kept = _kept(moment, singles)
    kept_ids = {variant.id for variant, _ in kept}
    has_base = moment.config.base.init != "none"
    return AnalyseOrder(
        best_single=order.best_single,
        served=soup_to_serve(moment),
        subjects=(
            *_ingredients(moment, kept),
            *_soups(moment, order),
            *(AnalysedModel(id=e.id, kind="ensemble", label=e.id) for e in compared.ensembles),
        ),
        not_analysed=tuple(e.checkpoint.id for v, e in singles if v.id not in kept_ids),
        # Without a common start there is nothing to measure displacements from.
        weighed=tuple(_weight_spaces(moment, kept)) if has_base else (),
        splits=order.splits,
        path=_path(moment),
    )


def _compared(moment: Moment) -> tuple[CompareOrder, Compared] | None:
    order = comparison(moment)
    if order is None or order.key not in moment.state.compared:
        return None
    return order, moment.state.compared[order.key]


def _kept(moment: Moment, singles: Sequence[Scored]) -> list[Scored]:
    """The best few, in configured order."""
    metric = moment.config.soup.metric
    best = sorted(singles, key=lambda pair: (-selection(pair[1], metric), pair[0].id))
    few = {variant.id for variant, _ in best[:MAX_INGREDIENTS]}
    return [single for single in singles if single[0].id in few]


def _ingredients(moment: Moment, kept: Sequence[Scored]) -> Iterator[AnalysedModel]:
    for variant, event in kept:
        cohort = moment.resolved.cohort_of[run_id_of(variant.id)].id
        yield AnalysedModel(
            id=event.checkpoint.id, kind="ingredient", label=variant.id, cohort=cohort
        )


def _soups(moment: Moment, order: CompareOrder) -> Iterator[AnalysedModel]:
    for final, name in written_soups(moment):
        predictions = predictions_of(moment.state, final, name)
        if predictions in order.soups:
            yield AnalysedModel(
                id=name,
                kind="soup",
                label=final.recipe.label,
                cohort=final.cohort.family,
                predictions=None if predictions == name else predictions,
            )


def _weight_spaces(moment: Moment, kept: Sequence[Scored]) -> Iterator[WeightSpaceGroup]:
    """Cohorts with at least two ingredients."""
    resolved = moment.resolved
    for cohort in resolved.cohorts:
        members = [e.checkpoint for v, e in kept if resolved.cohort_of[run_id_of(v.id)] == cohort]
        if len(members) > 1:
            yield WeightSpaceGroup(
                cohort=cohort,
                base=moment.state.bases[cohort.base],
                ingredients=tuple(members),
                components=resolved.preflight.models[model_key(cohort.model)].components,
            )


# The path from the best single model to the served soup


def _ends(moment: Moment) -> tuple[Scored, FinalMerge, str] | None:
    """None: there is no path, to another architecture or to a soup that is a single model."""
    name = soup_to_serve(moment)
    if name is None:
        return None
    final = next(final for final, soup in written_soups(moment) if soup == name)
    single = best_single(moment, scored_variants(moment))
    cohort = moment.resolved.cohort_of[run_id_of(single[0].id)]
    if cohort.id != final.cohort.family or single_member_of(moment.state, final) is not None:
        return None
    return single, final, name


def _midway(moment: Moment) -> TasteOrder | None:
    """Where a barrier would be highest."""
    ends = _ends(moment)
    if ends is None:
        return None
    (_, event), final, name = ends
    mix = Mix.mean([event.checkpoint.name, name])
    places = moment.state.checkpoints_named(mix.names)
    return TasteOrder(cohort=final.cohort, mix=mix, ingredients=places)


def _is_settled(moment: Moment, taste: TasteOrder) -> bool:
    return taste.id in moment.state.gave_up or _tasted(moment, taste) is not None


def _tasted(moment: Moment, taste: TasteOrder) -> float | None:
    result = moment.state.tastes.get((taste.cohort.id, taste.mix.key))
    return result.score if result is not None else None


def _path(moment: Moment) -> tuple[tuple[float, float | None], ...]:
    ends, taste = _ends(moment), _midway(moment)
    if ends is None or taste is None:
        return ()
    (_, event), final, name = ends
    metric = moment.config.soup.metric
    soup = scores_of_soup(moment.state, final, name)
    arrived = soup[SELECTION].selection(metric) if SELECTION in soup else None
    return (0.0, selection(event, metric)), (0.5, _tasted(moment, taste)), (1.0, arrived)
