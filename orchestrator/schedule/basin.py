"""The basin: an ingredient that no straight way joins to the best one is left out, and named.

    best ---- midway ---- ingredient      scored on the selection split, one taste each
                 |
       below the lower end by more than soup.basin: outside, for every recipe that mixes

Off unless soup.basin is set: a uniform soup is ruined by one run that went elsewhere, but greedy
finds out by itself. What is tasted here is what greedy tastes first, so it pays little twice.
"""

from collections.abc import Iterator

from orchestrator.experiment.resolved import ExpandedExperiment, resolve
from orchestrator.schedule.ingredients import checkpoints_named, ingredients
from orchestrator.schedule.training import all_settled, standing
from orchestrator.state.remember import remembered
from orchestrator.state.state import State
from workers.types import AnyOrder, Cohort, Decision, Ingredient, Mix, TasteOrder


def orders(program: ExpandedExperiment, state: State) -> Iterator[AnyOrder]:
    if all_settled(program, state):
        yield from (each for each in _tastes(program, state) if not _is_known(state, each))


def is_known(program: ExpandedExperiment, state: State) -> bool:
    """Whether all is tasted that decides who takes part; of a fleet that has ended."""
    return all(_is_known(state, taste) for taste in _tastes(program, state))


def outside_basin(
    program: ExpandedExperiment, state: State, cohort: Cohort, members: tuple[Ingredient, ...]
) -> tuple[Decision, ...]:
    """The members to leave out, with the reason; once `is_known`."""
    tastes = {each.mix.names[-1]: each for each in _tastes(program, state) if each.cohort == cohort}
    judged = (_judged(state, tastes[each.name]) for each in members if each.name in tastes)
    return tuple(decision for decision in judged if decision is not None)


@remembered(by=standing)
def _tastes(program: ExpandedExperiment, state: State) -> tuple[TasteOrder, ...]:
    """Of every ingredient but the best of its cohort."""
    if program.experiment.soup.basin is None or state.facts is None:
        return ()
    resolved = resolve(program, state.facts)
    return tuple(
        taste
        for cohort in resolved.cohorts
        for taste in _of(program, state, cohort, ingredients(program, state, resolved, cohort))
    )


def _of(
    program: ExpandedExperiment, state: State, cohort: Cohort, members: tuple[Ingredient, ...]
) -> Iterator[TasteOrder]:
    allowed = program.experiment.soup.basin
    assert allowed is not None
    best = min(members, key=lambda each: (-each.score, each.run), default=None)
    for each in members:
        if best is None or each is best:
            continue
        mix = Mix.mean([best.name, each.name])
        yield TasteOrder(
            cohort=cohort,
            mix=mix,
            ingredients=checkpoints_named(state, mix.names),
            at_least=min(best.score, each.score) - allowed,
        )


def _is_known(state: State, taste: TasteOrder) -> bool:
    if taste.id in state.gave_up:
        return True
    found = state.tastes.get((taste.cohort.id, taste.mix.key))
    assert taste.at_least is not None
    return found is not None and (found.score is not None or found.at_most < taste.at_least)


def _judged(state: State, taste: TasteOrder) -> Decision | None:
    """None for a member that is inside."""
    name, bar = taste.mix.names[-1], taste.at_least
    if taste.id in state.gave_up:
        reason = f"halfway to the best ingredient it has no score: {state.gave_up[taste.id]}"
        return Decision(candidate=name, accepted=False, reason=f"outside the basin: {reason}")
    found = state.tastes[taste.cohort.id, taste.mix.key]
    assert bar is not None
    if found.at_most >= bar:
        return None
    said = "scores" if found.score is not None else "scores at most"
    return Decision(
        candidate=name,
        accepted=False,
        after=found.score,
        at_most=None if found.score is not None else found.at_most,
        reason=f"outside the basin: halfway to the best ingredient the mix {said} "
        f"{found.at_most:.4f}, and soup.basin asks for {bar:.4f}",
    )
