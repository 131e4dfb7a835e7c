"""The end: what is served, when time is up, when there is nothing to do."""

from collections.abc import Iterator

from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule import basin, final_merges, scoring
from orchestrator.schedule.training import all_settled
from orchestrator.state.state import State
from workers.types import SELECTION, WORST, AnyEvent, AnyOrder, FinishRequested, Served, ServeOrder


def preflight_refusal(state: State) -> str | None:
    """Why the experiment cannot begin: preflight was given up."""
    return state.gave_up.get("preflight")


def deadline(program: ExpandedExperiment, state: State, now: float) -> Iterator[AnyEvent]:
    """fleet.max_hours after this driver took over, training stops and the soup is made."""
    hours = program.experiment.fleet.max_hours
    if hours is None or state.finish_reason is not None or state.opened_at is None:
        return
    if now >= state.opened_at + hours * 3600 and not all_settled(program, state):
        yield FinishRequested(time=now, reason=f"fleet.max_hours: {hours:g} h are over")


def serve_order(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    """Once everything is compared; the comparison itself selects nothing."""
    if not scoring.is_complete(program, state):
        return
    order = scoring.compare_order(program, state)
    if order is not None and not (order.key in state.compared or order.id in state.gave_up):
        return
    name = to_serve(program, state)
    if name is not None and (state.served is None or state.served.soup != name):
        yield ServeOrder(soup=state.soups[name])


def to_serve(program: ExpandedExperiment, state: State) -> str | None:
    """The soup that `soup.serve` names, or the best on the selection split; of equals the one with
    more members, since averaging is free at inference."""
    wanted = program.experiment.soup.serve
    candidates = [
        (_selection_score(program, state, final, name), len(_members(state, final)), -index, name)
        for index, (final, name) in enumerate(final_merges.written_soups(program, state))
        if wanted in ("auto", final.recipe.label, final.recipe.label.partition("@")[0])
    ]
    return max(candidates)[-1] if candidates else None


def _selection_score(
    program: ExpandedExperiment, state: State, final: final_merges.Final, name: str
) -> float:
    scores = scoring.scores_of_soup(state, final, name)
    if SELECTION not in scores:
        return WORST
    return scores[SELECTION].selection(program.experiment.soup.metric)


def _members(state: State, final: final_merges.Final) -> tuple[str, ...]:
    soup = state.merges[final.id].soup
    return soup.mix.names if soup is not None else ()


def served_nothing(program: ExpandedExperiment, state: State) -> Iterator[AnyEvent]:
    """All runs have ended and no soup will ever be made: said once."""
    if state.served is not None or not all_settled(program, state) or state.open:
        return
    if not basin.is_known(program, state):
        return
    possible = final_merges.finals(program, state)
    failed = final_merges.is_complete(program, state) and not final_merges.written_soups(
        program, state
    )
    if not possible or failed:
        yield Served(soup=None)
