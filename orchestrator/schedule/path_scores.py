"""Curves: what a recipe passed on its way to a soup, scored on the splits that only report.

    recipe's path -> (alpha, mix), ... -> scores known of a checkpoint or a soup, else a point order

WiSE-FT chooses an alpha on the selection split; how the others do on shifted data is what its curve
is looked at for. Computed when every soup is made and scored, so that nothing can select by it, and
nothing waits for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.experiment.resolved import ExpandedExperiment, resolve
from orchestrator.schedule import final_merges, scoring
from orchestrator.schedule.ingredients import checkpoints_named
from orchestrator.state.state import State
from workers import recipes
from workers.recipes import Path
from workers.types import AnyOrder, Mix, Score, ScoreMixOrder


@dataclass(frozen=True)
class Point:
    """A place on a recipe's way, with what is known of it so far."""

    alpha: float
    mix: Mix
    scores: Mapping[str, Score]
    """By split that only reports."""


def orders(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """Points of which no scores are known, each once, whichever recipes pass it."""
    if state.facts is None or not scoring.is_complete(program, state):
        return
    splits = resolve(program, state.facts).report_splits
    for order in {order.id: order for order in _passed(program, state)}.values():
        known = _scores(program, state, order)
        if any(split not in known for split in splits):
            places = checkpoints_named(state, order.mix.names)
            yield order.model_copy(update={"ingredients": places, "splits": splits})


def curve(
    program: ExpandedExperiment, state: State, final: final_merges.Final
) -> tuple[Point, ...]:
    """Of a merge that has its soup, in the recipe's order; empty for a recipe without a path."""
    return tuple(
        Point(alpha, mix, _scores(program, state, _order(final, mix)))
        for alpha, mix in _path(program, state, final)
    )


def _passed(program: ExpandedExperiment, state: State) -> Iterator[ScoreMixOrder]:
    for final, _ in final_merges.written_soups(program, state):
        yield from (_order(final, mix) for _, mix in _path(program, state, final))


def _path(program: ExpandedExperiment, state: State, final: final_merges.Final) -> Path:
    recipe = recipes.load_recipe(final.recipe.name, dict(final.recipe.options))
    context = final_merges.recipe_context(program, state, final.cohort)
    return recipes.path_of(recipe, final.ingredients, context)


def _order(final: final_merges.Final, mix: Mix) -> ScoreMixOrder:
    return ScoreMixOrder(cohort=final.cohort, mix=mix, ingredients=(), splits=())


def _scores(program: ExpandedExperiment, state: State, point: ScoreMixOrder) -> dict[str, Score]:
    """On the splits that only report: of the point itself, or of a checkpoint or a soup that it
    is."""
    assert state.facts is not None
    known = dict(state.scores.get(point.name, {}))
    if point.mix.single is not None:
        known |= state.scores.get(point.mix.single, {})
    for final, name in final_merges.written_soups(program, state):
        made = state.merges[final.id].soup
        if made is not None and _order(final, made.mix).name == point.name:
            known |= state.scores.get(name, {})
    splits = resolve(program, state.facts).report_splits
    return {split: known[split] for split in splits if split in known}
