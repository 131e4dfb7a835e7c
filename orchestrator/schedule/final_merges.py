"""Final merges: when every run has ended, each recipe makes its soup of each cohort.

    merge_opened -> [merge order -> asked -> taste orders -> tasted -> answered]* -> mixed -> blend
                                     |-> geometry or gradient -> measured -|

A recipe asks; slots taste and measure; the answer is an event.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from orchestrator.experiment.resolved import SoupRecipe
from orchestrator.schedule import basin
from orchestrator.schedule.answers import answer_event, is_measured, unknown
from orchestrator.schedule.moment import Moment, once
from orchestrator.state.state import MergeState, State
from workers.types import (
    SELECTION,
    AnyEvent,
    AnyOrder,
    BlendOrder,
    Cohort,
    Decision,
    FirstAtLeast,
    GeometryOrder,
    GradientOrder,
    GramMatrices,
    Ingredient,
    MergeOpened,
    MergeOrder,
    Mix,
    MixGradient,
    Policy,
    RecipeContext,
    Taste,
    TasteOrder,
    cohort_family,
    digest,
    model_key,
)


@dataclass(frozen=True)
class FinalMerge:
    """A final merge that is, or shall be, open."""

    id: str
    cohort: Cohort
    recipe: SoupRecipe
    ingredients: tuple[Ingredient, ...]
    left_out: tuple[Decision, ...] = ()


@once
def final_merges(moment: Moment) -> tuple[FinalMerge, ...]:
    """Empty until every run has ended; then one per cohort and recipe."""
    if not moment.all_runs_ended or not basin.is_known(moment):
        return ()
    if moment.config.soup.basin is not None:  # then tastes decide, too
        return _final_merges(moment)
    return moment.index.remembered("final_merges", lambda: _final_merges(moment))


def _final_merges(moment: Moment) -> tuple[FinalMerge, ...]:
    return tuple(
        FinalMerge(_merge_id(labelled, under, members), under, labelled, members, left_out)
        for cohort in moment.resolved.cohorts
        if (candidates := moment.ingredients(cohort))
        for recipe in moment.expanded.recipes
        for members, left_out in [_members(moment, cohort, recipe, candidates)]
        for labelled, under in _policies(moment, recipe, cohort)
    )


def _members(
    moment: Moment, cohort: Cohort, recipe: SoupRecipe, candidates: tuple[Ingredient, ...]
) -> tuple[tuple[Ingredient, ...], tuple[Decision, ...]]:
    """(ingredients, who is left out and why): `best` mixes nothing, so it may take any."""
    if recipe.name == "best":
        return candidates, ()
    left_out = basin.outside_basin(moment, cohort, candidates)
    names = {decision.candidate for decision in left_out}
    return tuple(member for member in candidates if member.name not in names), left_out


COMPARED: tuple[Policy, ...] = ("recompute", "average", "best")
"""Policies that soup.batchnorm: compare tries."""


def _policies(
    moment: Moment, recipe: SoupRecipe, cohort: Cohort
) -> Iterator[tuple[SoupRecipe, Cohort]]:
    """The recipe under every policy for BatchNorm statistics; `best` mixes nothing, so it is the
    same under all of them."""
    compared = moment.config.soup.batchnorm == "compare" and cohort.batchnorm != "none"
    if not compared or recipe.name == "best":
        yield recipe, cohort
        return
    for policy in COMPARED:
        yield replace(recipe, label=f"{recipe.label}@{policy}"), cohort.under(policy)


def _merge_id(recipe: SoupRecipe, cohort: Cohort, members: tuple[Ingredient, ...]) -> str:
    key = digest([dict(recipe.options), [member.name for member in members]], 6)
    return f"{recipe.label}-{cohort.id}-{key}"


def merge_decisions(moment: Moment) -> Iterator[AnyEvent]:
    """Open what is missing; answer what can be answered."""
    for final in final_merges(moment):
        if final.id not in moment.state.merges:
            yield MergeOpened(
                merge=final.id,
                cohort=final.cohort.id,
                recipe=final.recipe.name,
                options=dict(final.recipe.options),
                ingredients=final.ingredients,
                left_out=final.left_out,
                observe=False,
            )
    for merge in moment.state.unmixed.values():
        answer = answer_event(moment.state, merge)
        if answer is not None:
            yield answer


def final_orders(moment: Moment) -> Iterator[AnyOrder]:
    for final in final_merges(moment):
        merge = moment.state.merges.get(final.id)
        if merge is not None:
            yield from orders_of(moment, merge, final.cohort, width=moment.state.slots)


def orders_of(moment: Moment, merge: MergeState, cohort: Cohort, width: int) -> Iterator[AnyOrder]:
    """The next turn of the recipe, or what its question needs: tastes, or one measurement."""
    state, opened, question = moment.state, merge.opened, merge.question
    if merge.soup is not None or merge_failure(state, merge) is not None:
        return
    if question is None:
        yield _turn(moment, merge, cohort)
    elif isinstance(question, Taste | FirstAtLeast):
        for mix in islice(unknown(question, state, opened), width):
            order = taste_order(question, mix, cohort, opened.observe)
            if not state.is_blocked(order.id):
                yield _with_places(moment, opened, order)
    elif not is_measured(state, opened, question):
        measurement = _measurement(question, cohort, opened.observe)
        if not state.is_blocked(measurement.id):
            places = state.checkpoints_named(sorted(question.mentioned))
            yield measurement.model_copy(update={"ingredients": places})


def _turn(moment: Moment, merge: MergeState, cohort: Cohort) -> MergeOrder:
    opened = merge.opened
    return MergeOrder(
        merge=opened.merge,
        recipe=opened.recipe,
        options=opened.options,
        ingredients=opened.ingredients,
        answers=merge.answers,
        context=recipe_context(moment, cohort),
    )


def recipe_context(moment: Moment, cohort: Cohort) -> RecipeContext:
    preflight = moment.resolved.preflight
    return RecipeContext(
        base=cohort.base,
        components=preflight.models[model_key(cohort.model)].components,
        seed=moment.config.seed,
        batchnorm=cohort.batchnorm,
        num_selection=preflight.splits[SELECTION].count,
    )


def _measurement(
    question: GramMatrices | MixGradient, cohort: Cohort, observe: bool
) -> GeometryOrder | GradientOrder:
    if isinstance(question, GramMatrices):
        return GeometryOrder(cohort=cohort, question=question, ingredients=(), observe=observe)
    return GradientOrder(cohort=cohort, question=question, ingredients=(), observe=observe)


def _with_places(moment: Moment, opened: MergeOpened, order: TasteOrder) -> TasteOrder:
    """With the places of the mix's members, and of predictions that tell hard images."""
    return order.model_copy(
        update={
            "ingredients": moment.state.checkpoints_named(order.mix.names),
            "hard_images_first": moment.index.checkpoint_ids(opened),
        }
    )


def taste_order(
    question: Taste | FirstAtLeast, mix: Mix, cohort: Cohort, observe: bool
) -> TasteOrder:
    order = TasteOrder(cohort=cohort, mix=mix, ingredients=(), observe=observe)
    if isinstance(question, Taste):
        return order.model_copy(update={"hits": question.hits})
    return order.model_copy(update={"at_least": question.at_least, "strict": question.strict})


def merge_failure(state: State, merge: MergeState) -> str | None:
    """Why the recipe was given up: its turn, or what it asked to be measured. None: it was not."""
    if not state.gave_up:
        return None
    turn = MergeOrder.id_of(merge.opened.merge, len(merge.answers))
    return state.gave_up.get(turn) or _measurement_failure(state, merge)


def _measurement_failure(state: State, merge: MergeState) -> str | None:
    question, observe = merge.question, merge.opened.observe
    if not isinstance(question, GramMatrices | MixGradient):
        return None
    family = cohort_family(merge.opened.cohort)
    if isinstance(question, GramMatrices):
        order = GeometryOrder.id_of(question, family, observe)
    else:
        order = GradientOrder.id_of(question, family, observe)
    reason = state.gave_up.get(order)
    return None if reason is None else f"its {question.kind} failed: {reason}"


def soup_name(final: FinalMerge, mix: Mix) -> str:
    return f"soup/{final.recipe.label}-{digest([final.cohort.id, mix.key, final.cohort.batchnorm])}"


def blend_orders(moment: Moment) -> Iterator[AnyOrder]:
    for final in final_merges(moment):
        merge = moment.state.merges.get(final.id)
        if merge is None or merge.soup is None:
            continue
        name = soup_name(final, merge.soup.mix)
        if name not in moment.state.soups:
            yield BlendOrder(
                name=name,
                recipe=final.recipe.label,
                cohort=final.cohort,
                soup=merge.soup,
                ingredients=moment.state.checkpoints_named(merge.soup.mix.names),
            )


def all_merges_ended(moment: Moment) -> bool:
    """Every final soup is in the store, or will never be."""
    merges = final_merges(moment)
    return bool(merges) and all(_has_ended(moment.state, final) for final in merges)


def _has_ended(state: State, final: FinalMerge) -> bool:
    merge = state.merges.get(final.id)
    if merge is None:
        return False
    if merge.soup is None:
        return merge_failure(state, merge) is not None
    name = soup_name(final, merge.soup.mix)
    return name in state.soups or BlendOrder.id_of(name) in state.gave_up


@once
def written_soups(moment: Moment) -> tuple[tuple[FinalMerge, str], ...]:
    """(final merge, soup name) of the soups that are in the store."""
    state = moment.state
    return tuple(
        (final, name)
        for final in final_merges(moment)
        if (merge := state.merges.get(final.id)) is not None
        and merge.soup is not None
        and (name := soup_name(final, merge.soup.mix)) in state.soups
    )
