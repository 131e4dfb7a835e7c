"""Analysis: once everything is compared, what the models have in common is worked out.

    compared -> (a taste midway between the best single model and the served soup) -> analyse

It chooses nothing, and nothing waits for it: given up, it is missing from the report.
"""

from collections.abc import Iterator, Sequence

from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.schedule import final_merges, scoring, serving
from orchestrator.schedule.ingredients import checkpoints_named, selection
from orchestrator.state.remember import remembered
from orchestrator.state.state import State
from workers.types import (
    SELECTION,
    AnalysedModel,
    AnalyseOrder,
    AnyOrder,
    Checkpointed,
    Compared,
    CompareOrder,
    Mix,
    RunSpec,
    TasteOrder,
    WeightSpaceGroup,
    model_key,
    run_id_of,
)

MAX_INGREDIENTS = 40
"""That are analysed, the best on the selection split: every pair of them is."""

Single = tuple[RunSpec, Checkpointed]


def orders(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    order = analyse_order(program, state)
    if order is None or state.analysed == order.key:
        return
    taste = _midway(program, state)
    yield order if taste is None or _is_settled(state, taste) else taste


def is_made(program: ExpandedExperiment, state: State) -> bool:
    """Whether `analysis.json` is in the store, and of exactly what there is now."""
    order = analyse_order(program, state)
    return order is not None and state.analysed == order.key


@remembered(by=lambda program, state: (program, state))
def analyse_order(program: ExpandedExperiment, state: State) -> AnalyseOrder | None:
    """As of now: the score midway may be to come. None until everything is compared."""
    known = _comparison(program, state)
    if known is None or state.facts is None:
        return None
    order, compared = known
    resolved = resolve(program, state.facts)
    singles = scoring.scored_variants(program, state)
    kept = _kept(program, singles)
    served = serving.to_serve(program, state)
    return AnalyseOrder(
        best_single=order.best_single,
        served=served,
        subjects=(
            *_ingredients(resolved, kept),
            *_soups(program, state, order),
            *(AnalysedModel(id=e.id, kind="ensemble", label=e.id) for e in compared.ensembles),
        ),
        not_analysed=tuple(single[1].checkpoint.id for single in singles if single not in kept),
        # Without a common start there is nothing to measure displacements from.
        weighed=tuple(_weighed(state, resolved, kept)) if _has_base(program) else (),
        splits=order.splits,
        path=_way(program, state),
    )


def _comparison(program: ExpandedExperiment, state: State) -> tuple[CompareOrder, Compared] | None:
    order = scoring.compare_order(program, state)
    if order is None or order.key not in state.compared:
        return None
    return order, state.compared[order.key]


def _kept(program: ExpandedExperiment, singles: Sequence[Single]) -> list[Single]:
    """The best few, in configured order."""
    metric = program.experiment.soup.metric
    best = sorted(singles, key=lambda each: (-selection(each[1], metric), each[0].id))
    few = {track.id for track, _ in best[:MAX_INGREDIENTS]}
    return [single for single in singles if single[0].id in few]


def _ingredients(resolved: ResolvedExperiment, kept: Sequence[Single]) -> Iterator[AnalysedModel]:
    for track, event in kept:
        cohort = resolved.cohort_of[run_id_of(track.id)].id
        yield AnalysedModel(
            id=event.checkpoint.id, kind="ingredient", label=track.id, cohort=cohort
        )


def _soups(
    program: ExpandedExperiment, state: State, order: CompareOrder
) -> Iterator[AnalysedModel]:
    for final, name in final_merges.written_soups(program, state):
        predictions = scoring.predictions_of(state, final, name)
        if predictions in order.soups:
            yield AnalysedModel(
                id=name,
                kind="soup",
                label=final.recipe.label,
                cohort=final.cohort.family,
                predictions=None if predictions == name else predictions,
            )


def _has_base(program: ExpandedExperiment) -> bool:
    return program.experiment.base.init != "none"


def _weighed(
    state: State, resolved: ResolvedExperiment, kept: Sequence[Single]
) -> Iterator[WeightSpaceGroup]:
    """Cohorts with at least two ingredients."""
    for cohort in resolved.cohorts:
        mine = [e.checkpoint for t, e in kept if resolved.cohort_of[run_id_of(t.id)] == cohort]
        if len(mine) > 1:
            yield WeightSpaceGroup(
                cohort=cohort,
                base=state.bases[cohort.base],
                ingredients=tuple(mine),
                components=resolved.facts.models[model_key(cohort.model)].components,
            )


# The way from the best single model to the served soup


def _ends(
    program: ExpandedExperiment, state: State
) -> tuple[Single, final_merges.Final, str] | None:
    """None where there is no way: another architecture, or a soup that is a single model."""
    name = serving.to_serve(program, state)
    if name is None or state.facts is None:
        return None
    final = next(
        final for final, made in final_merges.written_soups(program, state) if made == name
    )
    single = scoring.best_single(program, scoring.scored_variants(program, state))
    cohort = resolve(program, state.facts).cohort_of[run_id_of(single[0].id)]
    if cohort.id != final.cohort.family or scoring.single_member_of(state, final) is not None:
        return None
    return single, final, name


def _midway(program: ExpandedExperiment, state: State) -> TasteOrder | None:
    """Where a barrier would be highest."""
    ends = _ends(program, state)
    if ends is None:
        return None
    (_, event), final, name = ends
    mix = Mix.mean([event.checkpoint.name, name])
    places = checkpoints_named(state, mix.names)
    return TasteOrder(cohort=final.cohort, mix=mix, ingredients=places)


def _is_settled(state: State, taste: TasteOrder) -> bool:
    return taste.id in state.gave_up or _tasted(state, taste) is not None


def _tasted(state: State, taste: TasteOrder) -> float | None:
    known = state.tastes.get((taste.cohort.id, taste.mix.key))
    return known.score if known is not None else None


def _way(program: ExpandedExperiment, state: State) -> tuple[tuple[float, float | None], ...]:
    ends, taste = _ends(program, state), _midway(program, state)
    if ends is None or taste is None:
        return ()
    (_, event), final, name = ends
    metric = program.experiment.soup.metric
    soup = scoring.scores_of_soup(state, final, name)
    arrived = soup[SELECTION].selection(metric) if SELECTION in soup else None
    return (0.0, selection(event, metric)), (0.5, _tasted(state, taste)), (1.0, arrived)
