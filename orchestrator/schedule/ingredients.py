"""Which checkpoints of a run may be mixed, and which one represents it."""

from orchestrator.config.sections import SoupConfig
from orchestrator.state.state import RunState
from workers.types import Checkpointed, Ingredient, Metric


def selection(event: Checkpointed, metric: Metric) -> float:
    """Selection score of a checkpoint, higher is better."""
    assert event.score is not None
    return event.score.selection(metric)


def ranked(run: RunState, metric: Metric) -> list[Checkpointed]:
    """Scored checkpoints, best first; among equals the later one."""
    return sorted(run.scored, key=lambda e: (-selection(e, metric), -e.checkpoint.step))


def selected_checkpoints(
    run: RunState, soup: SoupConfig, steps_per_epoch: int
) -> tuple[Checkpointed, ...]:
    """Ingredients under soup.ingredients: best, last, all, top-K or a list of epochs.

    A run that ended before the first of the epochs gives its last scored checkpoint instead.
    """
    if soup.ingredients == "all":
        return run.scored
    if soup.ingredients == "last":
        return run.scored[-1:]
    if not isinstance(soup.ingredients, str):
        steps = {epoch * steps_per_epoch for epoch in soup.ingredients}
        return tuple(e for e in run.scored if e.checkpoint.step in steps) or run.scored[-1:]
    count = 1 if soup.ingredients == "best" else int(soup.ingredients.removeprefix("top-"))
    return tuple(sorted(ranked(run, soup.metric)[:count], key=lambda e: e.checkpoint.step))


def representative_checkpoint(run: RunState, soup: SoupConfig) -> Checkpointed | None:
    """The checkpoint that represents the run, or its moving average, in tables and ensembles."""
    if soup.ingredients == "last":
        return run.scored[-1] if run.scored else None
    return next(iter(ranked(run, soup.metric)), None)


def ingredient(variant: str, event: Checkpointed, metric: Metric) -> Ingredient:
    """A checkpoint of that run, or moving average, as a recipe sees it."""
    return Ingredient(name=event.checkpoint.name, run=variant, score=selection(event, metric))
