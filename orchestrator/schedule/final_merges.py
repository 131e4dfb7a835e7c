"""Final merges: when every run has ended, each recipe makes its soup of each cohort.

    merge_opened -> [merge order -> asked -> taste orders -> tasted -> answered]* -> mixed -> blend
                                     |-> geometry or gradient -> measured -|

A recipe asks; slots taste and measure; the answer is an event.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from orchestrator.experiment.resolved import ExpandedExperiment, SoupRecipe, resolve
from orchestrator.schedule import basin
from orchestrator.schedule.answers import answered, is_measured, unknown
from orchestrator.schedule.ingredients import checkpoints_named, ingredients
from orchestrator.schedule.training import all_settled, standing
from orchestrator.state.remember import remembered
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
    measurement_id,
    model_key,
)


@dataclass(frozen=True)
class Final:
    """A final merge that is, or shall be, open."""

    id: str
    cohort: Cohort
    recipe: SoupRecipe
    ingredients: tuple[Ingredient, ...]
    left_out: tuple[Decision, ...] = ()


def finals(program: ExpandedExperiment, state: State) -> tuple[Final, ...]:
    """Empty until every run has ended; then one per cohort and recipe."""
    if not all_settled(program, state) or not basin.is_known(program, state):
        return ()
    return _finals(program, state)


def _deciding(program: ExpandedExperiment, state: State) -> tuple[object, ...]:
    tastes = state.tastes if program.experiment.soup.basin is not None else None
    return *standing(program, state), tastes


@remembered(by=_deciding)
def _finals(program: ExpandedExperiment, state: State) -> tuple[Final, ...]:
    assert state.facts is not None
    resolved = resolve(program, state.facts)
    return tuple(
        Final(_merge_id(labelled, under, members), under, labelled, members, left_out)
        for cohort in resolved.cohorts
        if (everyone := ingredients(program, state, resolved, cohort))
        for recipe in program.recipes
        for members, left_out in [_takes_part(program, state, cohort, recipe, everyone)]
        for labelled, under in _policies(program, recipe, cohort)
    )


def _takes_part(
    program: ExpandedExperiment,
    state: State,
    cohort: Cohort,
    recipe: SoupRecipe,
    everyone: tuple[Ingredient, ...],
) -> tuple[tuple[Ingredient, ...], tuple[Decision, ...]]:
    """(ingredients, who is left out and why): `best` mixes nothing, so it may take any."""
    if recipe.name == "best":
        return everyone, ()
    left_out = basin.outside_basin(program, state, cohort, everyone)
    names = {decision.candidate for decision in left_out}
    return tuple(each for each in everyone if each.name not in names), left_out


COMPARED: tuple[Policy, ...] = ("recompute", "average", "best")
"""Policies that soup.batchnorm: compare tries."""


def _policies(
    program: ExpandedExperiment, recipe: SoupRecipe, cohort: Cohort
) -> Iterator[tuple[SoupRecipe, Cohort]]:
    """The recipe under every policy for BatchNorm statistics; `best` mixes nothing, so it is the
    same under all of them."""
    compared = program.experiment.soup.batchnorm == "compare" and cohort.batchnorm != "none"
    if not compared or recipe.name == "best":
        yield recipe, cohort
        return
    for policy in COMPARED:
        yield replace(recipe, label=f"{recipe.label}@{policy}"), cohort.under(policy)


def _merge_id(recipe: SoupRecipe, cohort: Cohort, members: tuple[Ingredient, ...]) -> str:
    key = digest([dict(recipe.options), [member.name for member in members]], 6)
    return f"{recipe.label}-{cohort.id}-{key}"


def decisions(program: ExpandedExperiment, state: State) -> Iterator[AnyEvent]:
    """Open what is missing; answer what can be answered."""
    for final in finals(program, state):
        if final.id not in state.merges:
            yield MergeOpened(
                merge=final.id,
                cohort=final.cohort.id,
                recipe=final.recipe.name,
                options=dict(final.recipe.options),
                ingredients=final.ingredients,
                left_out=final.left_out,
                observe=False,
            )
    for merge in state.merges.values():
        answer = answered(state, merge)
        if answer is not None:
            yield answer


def final_orders(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    for final in finals(program, state):
        merge = state.merges.get(final.id)
        if merge is not None:
            yield from orders_of(program, state, merge, final.cohort, width=state.slots)


def orders_of(
    program: ExpandedExperiment, state: State, merge: MergeState, cohort: Cohort, width: int
) -> Iterator[AnyOrder]:
    """The next turn of the recipe, or what its question needs: tastes, or one measurement."""
    opened, question = merge.opened, merge.question
    if merge.soup is not None or failure(state, opened.merge) is not None:
        return
    if question is None:
        yield _turn(program, state, merge, cohort)
    elif isinstance(question, Taste | FirstAtLeast):
        for mix in islice(unknown(question, state, opened), width):
            order = taste_order(question, mix, cohort, opened.observe)
            if not state.is_blocked(order.id):
                yield _located(state, opened, order)
    elif not is_measured(state, opened, question):
        measurement = _measurement(question, cohort, opened.observe)
        if not state.is_blocked(measurement.id):
            places = checkpoints_named(state, sorted(question.mentioned))
            yield measurement.model_copy(update={"ingredients": places})


def _turn(
    program: ExpandedExperiment, state: State, merge: MergeState, cohort: Cohort
) -> MergeOrder:
    opened = merge.opened
    return MergeOrder(
        merge=opened.merge,
        recipe=opened.recipe,
        options=opened.options,
        ingredients=opened.ingredients,
        answers=merge.answers,
        kitchen=kitchen_of(program, state, cohort),
    )


def kitchen_of(program: ExpandedExperiment, state: State, cohort: Cohort) -> RecipeContext:
    assert state.facts is not None
    return RecipeContext(
        base=cohort.base,
        components=state.facts.models[model_key(cohort.model)].components,
        seed=program.experiment.seed,
        batchnorm=cohort.batchnorm,
        num_selection=state.facts.splits[SELECTION].count,
    )


def _measurement(
    question: GramMatrices | MixGradient, cohort: Cohort, observe: bool
) -> GeometryOrder | GradientOrder:
    if isinstance(question, GramMatrices):
        return GeometryOrder(cohort=cohort, question=question, ingredients=(), observe=observe)
    return GradientOrder(cohort=cohort, question=question, ingredients=(), observe=observe)


def _located(state: State, opened: MergeOpened, order: TasteOrder) -> TasteOrder:
    """With where the mix's members lie, and whose predictions say which images are hard."""
    places = {
        "ingredients": checkpoints_named(state, order.mix.names),
        "hard_first": _all_ids(state, opened),
    }
    return order.model_copy(update=places)


@remembered(by=lambda state, opened: (state.runs, opened))
def _all_ids(state: State, opened: MergeOpened) -> tuple[str, ...]:
    known = checkpoints_named(state, [ingredient.name for ingredient in opened.ingredients])
    return tuple(checkpoint.id for checkpoint in known)


def taste_order(
    question: Taste | FirstAtLeast, mix: Mix, cohort: Cohort, observe: bool
) -> TasteOrder:
    order = TasteOrder(cohort=cohort, mix=mix, ingredients=(), observe=observe)
    if isinstance(question, Taste):
        return order.model_copy(update={"hits": question.hits})
    return order.model_copy(update={"at_least": question.at_least, "strict": question.strict})


def failure(state: State, merge: str) -> str | None:
    """Why the recipe was given up, if it was: one of its turns, or what it asked to be measured."""
    if not state.gave_up:
        return None
    turns = (
        reason for order, reason in state.gave_up.items() if order.startswith(f"merge-{merge}-")
    )
    return next(turns, None) or _measurement_failure(state, state.merges.get(merge))


def _measurement_failure(state: State, merge: MergeState | None) -> str | None:
    if merge is None or not isinstance(merge.question, GramMatrices | MixGradient):
        return None
    opened = merge.opened
    order = measurement_id(merge.question, cohort_family(opened.cohort), opened.observe)
    reason = state.gave_up.get(order)
    return None if reason is None else f"its {merge.question.kind} failed: {reason}"


def soup_name(final: Final, mix: Mix) -> str:
    return f"soup/{final.recipe.label}-{digest([final.cohort.id, mix.key, final.cohort.batchnorm])}"


def blends(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    for final in finals(program, state):
        merge = state.merges.get(final.id)
        if merge is None or merge.soup is None:
            continue
        name = soup_name(final, merge.soup.mix)
        if name not in state.soups:
            yield BlendOrder(
                name=name,
                recipe=final.recipe.label,
                cohort=final.cohort,
                soup=merge.soup,
                ingredients=checkpoints_named(state, merge.soup.mix.names),
            )


def is_complete(program: ExpandedExperiment, state: State) -> bool:
    """Every final soup is in the store, or will never be."""
    todo = finals(program, state)
    return bool(todo) and all(_has_ended(state, final) for final in todo)


def _has_ended(state: State, final: Final) -> bool:
    merge = state.merges.get(final.id)
    if merge is None:
        return False
    if merge.soup is None:
        return failure(state, final.id) is not None
    name = soup_name(final, merge.soup.mix)
    return name in state.soups or f"blend-{name.removeprefix('soup/')}" in state.gave_up


def written_soups(program: ExpandedExperiment, state: State) -> tuple[tuple[Final, str], ...]:
    """(final merge, soup name) of the soups that are in the store."""
    return tuple(
        (final, name)
        for final in finals(program, state)
        if (merge := state.merges.get(final.id)) is not None
        and merge.soup is not None
        and (name := soup_name(final, merge.soup.mix)) in state.soups
    )
