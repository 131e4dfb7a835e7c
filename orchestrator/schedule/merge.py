"""Final merges: when every run has ended, each recipe makes its soup of each cohort.

    merge_opened -> [merge order -> asked -> taste orders -> tasted -> answered]* -> mixed -> blend

A recipe asks; slots taste; the answer is an event. A question is answered from what is known, so it
does not matter which driver, worker or attempt came to know it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from orchestrator.program import Program, Recipe, resolve
from orchestrator.remember import remembered
from orchestrator.schedule.choose import ingredients, locate_all
from orchestrator.schedule.train import all_settled, standing
from orchestrator.state import MergeState, State
from workers.types import (
    WORST,
    Answer,
    Answered,
    AnyEvent,
    AnyOrder,
    BlendOrder,
    Cohort,
    First,
    Found,
    Ingredient,
    MergeOpened,
    MergeOrder,
    Mix,
    Question,
    TasteOrder,
    Tasting,
    Tastings,
    digest,
)


@dataclass(frozen=True)
class Final:
    """A final merge that is, or shall be, open."""

    id: str
    cohort: Cohort
    recipe: Recipe
    ingredients: tuple[Ingredient, ...]


def finals(program: Program, state: State) -> tuple[Final, ...]:
    """Empty until every run has ended; then one per cohort and recipe."""
    return _finals(program, state) if all_settled(program, state) else ()


@remembered(by=standing)
def _finals(program: Program, state: State) -> tuple[Final, ...]:
    assert state.facts is not None
    resolved = resolve(program, state.facts)
    return tuple(
        Final(_merge_id(recipe, cohort, members), cohort, recipe, members)
        for cohort in resolved.cohorts
        if (members := ingredients(program, state, resolved, cohort))
        for recipe in program.recipes
    )


def _merge_id(recipe: Recipe, cohort: Cohort, members: tuple[Ingredient, ...]) -> str:
    key = digest([dict(recipe.options), [member.name for member in members]], 6)
    return f"{recipe.label}-{cohort.id}-{key}"


def decisions(program: Program, state: State) -> Iterator[AnyEvent]:
    """Open what is missing; answer what can be answered."""
    for final in finals(program, state):
        if final.id not in state.merges:
            yield MergeOpened(
                merge=final.id,
                cohort=final.cohort.id,
                recipe=final.recipe.name,
                options=dict(final.recipe.options),
                ingredients=final.ingredients,
                observe=False,
            )
    for merge in state.merges.values():
        if merge.soup is None and merge.question is not None:
            answer = answer_to(merge.question, state, merge.opened)
            if answer is not None:
                yield Answered(merge=merge.opened.merge, answer=answer)


def final_orders(program: Program, state: State) -> Iterator[AnyOrder]:
    for final in finals(program, state):
        merge = state.merges.get(final.id)
        if merge is not None:
            yield from orders_of(state, merge, final.cohort, width=state.slots)


def orders_of(state: State, merge: MergeState, cohort: Cohort, width: int) -> Iterator[AnyOrder]:
    """The next turn of the recipe, or the tastes that its question needs."""
    opened = merge.opened
    if merge.soup is not None or failure(state, opened.merge) is not None:
        return
    if merge.question is None:
        yield MergeOrder(
            merge=opened.merge,
            recipe=opened.recipe,
            options=opened.options,
            ingredients=opened.ingredients,
            answers=merge.answers,
        )
        return
    for mix in islice(unknown(merge.question, state, opened), width):
        order = taste_order(merge.question, mix, cohort, opened.observe)
        if not state.holds(order.id):
            yield _located(state, opened, order)


def _located(state: State, opened: MergeOpened, order: TasteOrder) -> TasteOrder:
    """With where the mix's members lie, and whose predictions say which images are hard."""
    places = {
        "ingredients": locate_all(state, order.mix.names),
        "hard_first": _all_ids(state, opened),
    }
    return order.model_copy(update=places)


@remembered(by=lambda state, opened: (state.runs, opened))
def _all_ids(state: State, opened: MergeOpened) -> tuple[str, ...]:
    known = locate_all(state, [ingredient.name for ingredient in opened.ingredients])
    return tuple(checkpoint.id for checkpoint in known)


def taste_order(question: Question, mix: Mix, cohort: Cohort, observe: bool) -> TasteOrder:
    bar, strict = None, False
    if isinstance(question, First):
        bar, strict = question.at_least, question.strict
    return TasteOrder(
        cohort=cohort, mix=mix, ingredients=(), at_least=bar, strict=strict, observe=observe
    )


def failure(state: State, merge: str) -> str | None:
    """Why the recipe itself was given up, if it was."""
    turns = (
        reason for order, reason in state.gave_up.items() if order.startswith(f"merge-{merge}-")
    )
    return next(turns, None)


def known(state: State, opened: MergeOpened, mix: Mix) -> Tasting | None:
    """What the ledger says of a mix; a single is its ingredient, score and all."""
    if mix.single is not None:
        score = next(i.score for i in opened.ingredients if i.name == mix.single)
        return Tasting(score=score, at_most=score, samples=0)
    prefix = f"{'observe' if opened.observe else 'taste'}-{opened.cohort}-{mix.key}-"
    if any(order.startswith(prefix) for order in state.gave_up):
        return Tasting(score=None, at_most=WORST, samples=0)
    return state.tastes.get((opened.cohort, mix.key))


def answer_to(question: Question, state: State, opened: MergeOpened) -> Answer | None:
    """The answer if everything it needs is known; speculative tastes beyond it are ignored."""
    if isinstance(question, First):
        return _first(question, state, opened)
    tastings = [known(state, opened, mix) for mix in question.mixes]
    if not all(is_enough(tasting, question) for tasting in tastings):
        return None
    return Tastings(scores=tuple(WORST if not t or t.score is None else t.score for t in tastings))


def _first(question: First, state: State, opened: MergeOpened) -> Found | None:
    tried: list[Tasting] = []
    for index, mix in enumerate(question.mixes):
        tasting = known(state, opened, mix)
        if tasting is None or not is_enough(tasting, question):
            return None
        tried.append(tasting)
        if tasting.score is not None and question.is_met_by(tasting.score):
            return Found(index=index, tried=tuple(tried))
    return Found(index=None, tried=tuple(tried))


def is_enough(tasting: Tasting | None, question: Question) -> bool:
    """A complete score always is; a bound only when it decides this question."""
    if tasting is None:
        return False
    if tasting.score is not None or tasting.at_most == WORST:
        return True
    return isinstance(question, First) and not question.is_met_by(tasting.at_most)


def unknown(question: Question, state: State, opened: MergeOpened) -> Iterator[Mix]:
    """Mixes still to be tasted, in order; for `First` none beyond the first that is known to do."""
    for mix in question.mixes:
        tasting = known(state, opened, mix)
        if not is_enough(tasting, question):
            yield mix
        elif _settles(tasting, question):
            return


def _settles(tasting: Tasting | None, question: Question) -> bool:
    if not isinstance(question, First) or tasting is None or tasting.score is None:
        return False
    return question.is_met_by(tasting.score)


def soup_name(final: Final, mix: Mix) -> str:
    return f"soup/{final.recipe.label}-{digest([final.cohort.id, mix.key, final.cohort.batchnorm])}"


def blends(program: Program, state: State) -> Iterator[AnyOrder]:
    for final in finals(program, state):
        merge = state.merges.get(final.id)
        if merge is None or merge.soup is None:
            continue
        name = soup_name(final, merge.soup.mix)
        if name not in state.soups:
            yield BlendOrder(
                soup=name,
                recipe=final.recipe.label,
                cohort=final.cohort,
                made=merge.soup,
                ingredients=locate_all(state, merge.soup.mix.names),
            )


def is_complete(program: Program, state: State) -> bool:
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


def made(program: Program, state: State) -> tuple[tuple[Final, str], ...]:
    """(final merge, soup name) of the soups that are in the store."""
    return tuple(
        (final, name)
        for final in finals(program, state)
        if (merge := state.merges.get(final.id)) is not None
        and merge.soup is not None
        and (name := soup_name(final, merge.soup.mix)) in state.soups
    )
