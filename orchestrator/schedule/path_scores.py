"""Scores along a recipe's path, on the report splits.

    recipe's path -> (alpha, mix), ... -> the scores of a checkpoint or soup, else a point order

WiSE-FT chooses an alpha on the selection split; its curve shows how the others do on shifted data.
Computed when every soup is made and scored, so that nothing can select by it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.schedule.final_merges import FinalMerge, recipe_context, written_soups
from orchestrator.schedule.moment import Moment
from orchestrator.schedule.scoring import all_is_scored
from workers import recipes
from workers.recipes import Path
from workers.types import AnyOrder, Mix, Score, ScoreMixOrder


@dataclass(frozen=True)
class PathPoint:
    """A mix on a recipe's path, with its scores so far."""

    alpha: float
    mix: Mix
    scores: Mapping[str, Score]
    """By report split."""


def path_orders(moment: Moment) -> Iterator[AnyOrder]:
    """Mixes that lack scores, each once, however many recipes pass it."""
    if not all_is_scored(moment):
        return
    splits = moment.resolved.report_splits
    for order in {order.id: order for order in _passed(moment)}.values():
        scores = _scores(moment, order)
        if any(split not in scores for split in splits):
            places = moment.state.checkpoints_named(order.mix.names)
            yield order.model_copy(update={"ingredients": places, "splits": splits})


def path_scores(moment: Moment, final: FinalMerge) -> tuple[PathPoint, ...]:
    """The path of a merge that has its soup, in order; empty for a recipe without a path."""
    return tuple(
        PathPoint(alpha, mix, _scores(moment, _order(final, mix)))
        for alpha, mix in _path(moment, final)
    )


def _passed(moment: Moment) -> Iterator[ScoreMixOrder]:
    for final, _ in written_soups(moment):
        yield from (_order(final, mix) for _, mix in _path(moment, final))


def _path(moment: Moment, final: FinalMerge) -> Path:
    name = final.recipe.name
    if recipes.module_of(name) is not None and recipes.imported_class(name) is None:
        return ()  # a verb that only reads does not import what a store names
    recipe = recipes.load_recipe(name, dict(final.recipe.options))
    return recipes.path_of(recipe, final.ingredients, recipe_context(moment, final.cohort))


def _order(final: FinalMerge, mix: Mix) -> ScoreMixOrder:
    return ScoreMixOrder(cohort=final.cohort, mix=mix, ingredients=(), splits=())


def _scores(moment: Moment, point: ScoreMixOrder) -> dict[str, Score]:
    """On the report splits: of the mix itself, or of a checkpoint or a soup that it is."""
    state = moment.state
    scores = dict(state.scores.get(point.name, {}))
    if point.mix.single is not None:
        scores |= state.scores.get(point.mix.single, {})
    for final, name in written_soups(moment):
        soup = state.merges[final.id].soup
        if soup is not None and _order(final, soup.mix).name == point.name:
            scores |= state.scores.get(name, {})
    splits = moment.resolved.report_splits
    return {split: scores[split] for split in splits if split in scores}
