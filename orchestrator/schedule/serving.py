"""The end: what is served, when time is up, when there is nothing to do."""

from collections.abc import Iterator

from orchestrator.schedule import basin
from orchestrator.schedule.final_merges import (
    FinalMerge,
    all_merges_ended,
    final_merges,
    written_soups,
)
from orchestrator.schedule.moment import Moment, once
from orchestrator.schedule.scoring import all_is_scored, comparison, scores_of_soup
from orchestrator.state.state import State
from workers.types import (
    SELECTION,
    WORST,
    AnyEvent,
    AnyOrder,
    FinishRequested,
    PreflightOrder,
    Served,
    ServeOrder,
)


def preflight_refusal(state: State) -> str | None:
    """Why the experiment cannot begin: preflight was given up. None: it was not."""
    return state.gave_up.get(PreflightOrder.id_of())


def finish_decisions(moment: Moment, now: float) -> Iterator[AnyEvent]:
    """fleet.max_hours after this driver took over, training stops and the soup is made."""
    hours, state = moment.config.fleet.max_hours, moment.state
    if hours is None or state.finish_reason is not None or state.opened_at is None:
        return
    is_over = now >= state.opened_at + hours * 3600
    if is_over and not moment.all_runs_ended:
        yield FinishRequested(time=now, reason=f"fleet.max_hours: {hours:g} h are over")


def serve_orders(moment: Moment) -> Iterator[AnyOrder]:
    """Once everything is compared; the comparison itself selects nothing."""
    state = moment.state
    if not all_is_scored(moment):
        return
    order = comparison(moment)
    if order is not None and not (order.key in state.compared or order.id in state.gave_up):
        return
    name = soup_to_serve(moment)
    if name is not None and (state.served is None or state.served.soup != name):
        yield ServeOrder(soup=state.soups[name])


@once
def soup_to_serve(moment: Moment) -> str | None:
    """The soup that `soup.serve` names, or the best on the selection split; among equals the one
    with more members, since averaging is free at inference."""
    wanted = moment.config.soup.serve
    candidates = [
        (_selection_score(moment, final, name), _num_members(moment, final), -index, name)
        for index, (final, name) in enumerate(written_soups(moment))
        if wanted in ("auto", final.recipe.label, final.recipe.label.partition("@")[0])
    ]
    return max(candidates)[-1] if candidates else None


def _selection_score(moment: Moment, final: FinalMerge, name: str) -> float:
    scores = scores_of_soup(moment.state, final, name)
    if SELECTION not in scores:
        return WORST
    return scores[SELECTION].selection(moment.config.soup.metric)


def _num_members(moment: Moment, final: FinalMerge) -> int:
    soup = moment.state.merges[final.id].soup
    return len(soup.mix.names) if soup is not None else 0


def served_nothing(moment: Moment) -> Iterator[AnyEvent]:
    """All runs have ended and no soup will ever be made: said once."""
    if moment.state.served is not None or moment.state.open or not moment.all_runs_ended:
        return
    if not basin.is_known(moment):
        return
    failed = all_merges_ended(moment) and not written_soups(moment)
    if not final_merges(moment) or failed:
        yield Served(soup=None)
