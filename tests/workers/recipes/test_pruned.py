"""Pruned against the textbook loops, on random tables of scores."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.recipes.score_tables import CONTEXT, Table, answer, run_recipe, tables
from workers.errors import UserError
from workers.merging.recipe_driver import advance
from workers.recipes import load_recipe
from workers.recipes.pruned import Pruned, PrunedRounds
from workers.types import FirstAtLeast, Mix, Soup, Taste

ties = st.sampled_from(["accept", "strict"])


def passes(after: float, score: float, strict: bool) -> bool:
    return after > score if strict else after >= score


def dansereau(
    table: Table, num_passes: int, best_removable: bool, strict: bool
) -> tuple[list[str], float]:
    """From worst to best; what the soup can do without is removed and not offered again."""
    members = [each.name for each in table.best_first()]
    score, best = table.mean(members), members[0]
    for _ in range(num_passes):
        for name in members[::-1]:
            rest = [each for each in members if each != name]
            if not rest or (name == best and not best_removable):
                continue
            after = table.mean(rest)
            if passes(after, score, strict):
                members, score = rest, after
    return members, score


def in_rounds(table: Table, num_rounds: int, strict: bool) -> tuple[list[str], float]:
    """Remove the first that the soup can do without, then start again from the worst."""
    members = [each.name for each in table.best_first()]
    score = table.mean(members)
    for _ in range(num_rounds):
        trials = [[each for each in members if each != name] for name in members[::-1]]
        good = [rest for rest in trials if rest and passes(table.mean(rest), score, strict)]
        if not good:
            break
        members, score = good[0], table.mean(good[0])
    return members, score


@settings(deadline=None)
@given(
    table=tables,
    num_passes=st.integers(1, 3),
    best_removable=st.booleans(),
    tie=ties,
    stops_early=st.booleans(),
)
def test_pruned_leaves_the_members_of_the_textbook(
    table: Table, num_passes: int, best_removable: bool, tie: str, stops_early: bool
) -> None:
    options = {"passes": num_passes, "best_removable": best_removable, "tie": tie}
    soup, _ = run_recipe(table, load_recipe("pruned", options), stops_early)
    members, score = dansereau(table, num_passes, best_removable, tie == "strict")
    assert (soup.mix, soup.score) == (Mix.mean(members), score)


@settings(deadline=None)
@given(table=tables, rounds=st.integers(1, 9), tie=ties, stops_early=st.booleans())
def test_a_round_removes_the_first_that_the_soup_can_do_without(
    table: Table, rounds: int, tie: str, stops_early: bool
) -> None:
    soup, _ = run_recipe(
        table, load_recipe("pruned_rounds", {"rounds": rounds, "tie": tie}), stops_early
    )
    members, score = in_rounds(table, rounds, tie == "strict")
    assert (soup.mix, soup.score) == (Mix.mean(members), score)


@settings(deadline=None)
@given(
    table=tables,
    recipe=st.sampled_from([Pruned(), Pruned(passes=9, best_removable=True), PrunedRounds()]),
)
def test_a_pruned_soup_keeps_a_member_and_scores_no_less_than_uniform(
    table: Table, recipe: Pruned | PrunedRounds
) -> None:
    soup, questions = run_recipe(table, recipe)
    best_first = [each.name for each in table.best_first()]
    assert soup.score is not None
    assert soup.score == table.score(soup.mix) >= table.mean(best_first)
    assert questions[0] == Taste(mixes=(Mix.mean(best_first),)), "the very mix that uniform tastes"
    out = [each.candidate.removeprefix("without ") for each in soup.decisions[1:] if each.accepted]
    assert [name for name in best_first if name not in out] == list(soup.mix.names)
    if not recipe.best_removable:
        assert best_first[0] in soup.mix.names


def test_patience_ends_a_pass_and_every_step_has_a_decision() -> None:
    table = Table(seed=3, num=6)
    recipe = Pruned(tie="strict", min_delta=1.0, patience=2)
    first = advance(recipe, table.pool, (), CONTEXT)
    assert isinstance(first, Taste)
    asked = advance(recipe, table.pool, (answer(table, first, True),), CONTEXT)
    assert isinstance(asked, FirstAtLeast) and len(asked.mixes) == 2
    soup, _ = run_recipe(table, recipe)
    assert isinstance(soup, Soup) and len(soup.mix.names) == 6
    assert soup.decisions[0].candidate == "all"
    assert "the mean of all 6 starts with" in soup.decisions[0].reason
    worst = table.best_first()[-1].name
    assert soup.decisions[1].candidate == f"without {worst}"
    assert "the soup with it scores" in soup.decisions[1].reason
    assert [each.reason for each in soup.decisions[3:]] == [
        "not offered after 2 refusals in a row"
    ] * 3


@pytest.mark.parametrize("name", ["pruned", "pruned_rounds"])
def test_a_wrong_option_is_the_users_mistake(name: str) -> None:
    count = "passes" if name == "pruned" else "rounds"
    with pytest.raises(UserError, match=f"recipe {name}, option {count}: .*got 0"):
        load_recipe(name, {count: 0})
    with pytest.raises(UserError, match="has no option 'best_removeable'; did you mean best_rem"):
        load_recipe(name, {"best_removeable": True})
