"""The basin: an ingredient that no straight path joins to the best one is left out, and named.

    best ---- midway ---- ingredient      scored on the selection split, one taste each
                 |
       below the lower end by more than soup.basin: outside, for every recipe that mixes

Off unless soup.basin is set: a uniform soup is ruined by one run that left the basin, but greedy
finds that out by itself. What is tasted here is what greedy tastes first, so it costs little twice.
"""

from collections.abc import Iterator

from orchestrator.schedule.moment import Moment
from workers.types import AnyOrder, Cohort, Decision, Ingredient, Mix, TasteOrder


def basin_orders(moment: Moment) -> Iterator[AnyOrder]:
    if moment.all_runs_ended:
        yield from (taste for taste in _tastes(moment) if not _is_tasted(moment, taste))


def is_known(moment: Moment) -> bool:
    """Whether all tastes are there that decide who takes part, once every run has ended."""
    return all(_is_tasted(moment, taste) for taste in _tastes(moment))


def outside_basin(
    moment: Moment, cohort: Cohort, members: tuple[Ingredient, ...]
) -> tuple[Decision, ...]:
    """The members to leave out, with the reason; once `is_known`."""
    tastes = {t.mix.names[-1]: t for t in _tastes(moment) if t.cohort == cohort}
    decisions = (_decision(moment, tastes[m.name]) for m in members if m.name in tastes)
    return tuple(decision for decision in decisions if decision is not None)


def _tastes(moment: Moment) -> tuple[TasteOrder, ...]:
    """One for every ingredient but the best of its cohort."""
    if moment.config.soup.basin is None:
        return ()
    return moment.index.remembered(
        "basin tastes",
        lambda: tuple(
            taste
            for cohort in moment.resolved.cohorts
            for taste in _tastes_of(moment, cohort, moment.ingredients(cohort))
        ),
    )


def _tastes_of(
    moment: Moment, cohort: Cohort, members: tuple[Ingredient, ...]
) -> Iterator[TasteOrder]:
    allowed = moment.config.soup.basin
    assert allowed is not None
    best = min(members, key=lambda member: (-member.score, member.run), default=None)
    for member in members:
        if best is None or member is best:
            continue
        mix = Mix.mean([best.name, member.name])
        yield TasteOrder(
            cohort=cohort,
            mix=mix,
            ingredients=moment.state.checkpoints_named(mix.names),
            at_least=min(best.score, member.score) - allowed,
        )


def _is_tasted(moment: Moment, taste: TasteOrder) -> bool:
    if taste.id in moment.state.gave_up:
        return True
    result = moment.state.tastes.get((taste.cohort.id, taste.mix.key))
    assert taste.at_least is not None
    return result is not None and (result.score is not None or result.at_most < taste.at_least)


def _decision(moment: Moment, taste: TasteOrder) -> Decision | None:
    """None: the member is inside."""
    name, bar = taste.mix.names[-1], taste.at_least
    if taste.id in moment.state.gave_up:
        reason = f"halfway to the best ingredient it has no score: {moment.state.gave_up[taste.id]}"
        return Decision(candidate=name, accepted=False, reason=f"outside the basin: {reason}")
    result = moment.state.tastes[taste.cohort.id, taste.mix.key]
    assert bar is not None
    if result.at_most >= bar:
        return None
    scores = "scores" if result.score is not None else "scores at most"
    return Decision(
        candidate=name,
        accepted=False,
        after=result.score,
        at_most=None if result.score is not None else result.at_most,
        reason=f"outside the basin: halfway to the best ingredient the mix {scores} "
        f"{result.at_most:.4f}, and soup.basin asks for {bar:.4f}",
    )
