"""Acceptance: minimum gain, patience and the paired test, each against a plain loop."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.workers.recipes.score_tables import CONTEXT, NUM_IMAGES, Table, run_recipe, tables
from workers.errors import UserError
from workers.merging.recipe_driver import advance
from workers.recipes import load_recipe
from workers.recipes.greedy import Greedy
from workers.recipes.pruned import Pruned
from workers.types import (
    WORST,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    Mix,
    Soup,
    Taste,
    TasteResult,
    TasteResults,
)

STEPWISE = ["greedy", "greedy_random", "greedy_replacement", "pruned", "pruned_rounds"]
POOL = tuple(Ingredient(name=n, run=n, score=0.1) for n in "ab")


@settings(deadline=None)
@given(
    table=tables,
    strict=st.booleans(),
    steps=st.integers(0, 6),
    patience=st.none() | st.integers(1, 4),
)
def test_a_gain_below_the_minimum_is_refused_and_patience_ends_the_offers(
    table: Table, strict: bool, steps: int, patience: int | None
) -> None:
    options = {"tie": "strict" if strict else "accept", "min_delta": steps / NUM_IMAGES}
    soup, _ = run_recipe(table, load_recipe("greedy", {**options, "patience": patience}))
    members, score, refused = [table.best_first()[0].name], table.best_first()[0].score, 0
    for candidate in table.best_first()[1:]:
        if refused == patience:
            break
        after = table.mean([*members, candidate.name])
        gained = round((after - score) * NUM_IMAGES)
        refused += 1
        if gained > steps or (gained == steps and not strict):
            members, score, refused = [*members, candidate.name], after, 0
    assert soup.mix == Mix.mean(members)
    assert soup.score == score
    assert len(soup.decisions) == len(table.pool), "whoever was not offered is told as well"


def test_patience_names_the_candidates_it_does_not_offer_and_asks_nothing_about_them() -> None:
    pool = tuple(Ingredient(name=n, run=n, score=0.5) for n in "abcdef")
    asked = advance(Greedy(patience=2), pool, (), CONTEXT)
    assert isinstance(asked, FirstAtLeast) and len(asked.mixes) == 2
    bound = TasteResult(score=None, at_most=0.4, samples=3)
    soup = advance(
        Greedy(patience=2), pool, (FirstResult(index=None, tried=(bound, bound)),), CONTEXT
    )
    assert isinstance(soup, Soup)
    assert [each.candidate for each in soup.decisions] == list("abcdef")
    said = [each.reason for each in soup.decisions]
    assert said[3:] == ["not offered after 2 refusals in a row"] * 3


def test_a_minimum_gain_is_met_by_exactly_so_many_images() -> None:
    asked = advance(Greedy(min_delta=0.2), POOL, (), CONTEXT)
    assert isinstance(asked, FirstAtLeast) and 0.3 - 1e-9 < asked.at_least < 0.3 < 0.1 + 0.2
    exact = FirstResult(index=0, tried=(TasteResult(score=0.3, at_most=0.3, samples=100),))
    soup = advance(Greedy(min_delta=0.2), POOL, (exact,), CONTEXT)
    assert isinstance(soup, Soup) and soup.mix == Mix.mean(["a", "b"])
    less = FirstResult(index=None, tried=(TasteResult(score=0.295, at_most=0.295, samples=200),))
    soup = advance(Greedy(min_delta=0.2), POOL, (less,), CONTEXT)
    assert isinstance(soup, Soup)
    assert soup.decisions[1].reason == (
        "raises the score from 0.1000 to 0.2950, and the rule asks for at least 0.3000"
    )
    tie = FirstResult(index=None, tried=(TasteResult(score=0.1, at_most=0.1, samples=100),))
    soup = advance(Greedy(min_delta=0.2), POOL, (tie,), CONTEXT)
    assert isinstance(soup, Soup) and not soup.decisions[1].accepted


@settings(deadline=None)
@given(
    num=st.integers(100, 3000),
    right=st.integers(0, 100),
    gain=st.integers(1, 99),
    tie=st.sampled_from(["accept", "strict"]),
)
def test_so_many_images_are_a_tie_whatever_the_size_of_the_split(
    num: int, right: int, gain: int, tie: str
) -> None:
    """For instance shares of 300 images, which no decimal number is equal to."""
    before, after = right / num, (right + gain) / num
    pool = tuple(Ingredient(name=n, run=n, score=before) for n in "ab")
    asked = advance(load_recipe("greedy", {"tie": tie, "min_delta": gain / num}), pool, (), CONTEXT)
    assert isinstance(asked, FirstAtLeast)
    assert asked.is_met_by(after) == (tie == "accept")
    assert asked.is_met_by((right + gain + 1) / num)
    assert not asked.is_met_by((right + gain - 1) / num)


@settings(deadline=None)
@given(table=tables, strict=st.booleans(), alpha=st.sampled_from([0.05, 0.3, 0.9]))
def test_under_the_test_greedy_compares_images_with_the_best_soup_so_far(
    table: Table, strict: bool, alpha: float
) -> None:
    options = {"tie": "strict" if strict else "accept", "test": "mcnemar", "alpha": alpha}
    soup, questions = run_recipe(table, load_recipe("greedy", options))
    members = [table.best_first()[0].name]
    best = table.right(Mix.mean(members))
    for candidate in table.best_first()[1:]:
        new = table.right(Mix.mean([*members, candidate.name]))
        gained = sum(n and not b for n, b in zip(new, best, strict=True))
        lost = sum(b and not n for n, b in zip(new, best, strict=True))
        num = gained + lost
        clear = bool(num) and binomtest(gained, num).pvalue < alpha
        if (clear and gained > lost) if strict else not (clear and lost > gained):
            members.append(candidate.name)
            best = new if sum(new) >= sum(best) else best
    assert soup.mix == Mix.mean(members)
    assert soup.score == table.mean(members)
    assert all(isinstance(each, Taste) and each.hits for each in questions)


@settings(deadline=None)
@given(table=tables)
def test_significantly_better_is_never_worse_and_leaves_pruned_what_it_needs(table: Table) -> None:
    rule: dict[str, Any] = {"tie": "strict", "test": "mcnemar"}
    grown, _ = run_recipe(table, Greedy(**rule))
    assert grown.score is not None
    assert grown.score >= max(each.score for each in table.pool)
    left, _ = run_recipe(table, Pruned(**rule))
    assert left.score is not None
    assert left.score >= table.mean(each.name for each in table.best_first())


def test_a_mix_that_could_not_be_tasted_is_refused_with_a_reason() -> None:
    lost = FirstResult(index=None, tried=(TasteResult(score=None, at_most=WORST, samples=0),))
    soup = advance(Greedy(), POOL, (lost,), CONTEXT)
    assert isinstance(soup, Soup)
    assert soup.decisions[1].reason == "its taste was given up, so its score is not known"
    known = TasteResults(scores=(0.5,), hits=("f0",))
    unknown = TasteResults(scores=(WORST,), hits=(None,))
    tested = Greedy(test="mcnemar")
    for answers in ((known, unknown), (unknown, known)):
        soup = advance(tested, POOL, answers, CONTEXT)
        assert isinstance(soup, Soup) and soup.mix.single == "a"
        assert "not known" in soup.decisions[1].reason


def test_under_the_test_a_reason_has_images_and_p_value() -> None:
    better = TasteResults(scores=(0.9,), hits=("ff",))
    soup = advance(
        Greedy(test="mcnemar"), POOL, (TasteResults(scores=(0.1,), hits=("01",)), better), CONTEXT
    )
    assert isinstance(soup, Soup)
    assert soup.decisions[1].reason == (
        "gains 7 images and loses 0 against the best soup so far, 0.1000: p = 0.016 by McNemar's "
        "test, not significantly worse"
    )


@pytest.mark.parametrize("name", STEPWISE)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_delta": -0.1}, "option min_delta: .*got -0.1"),
        ({"alpha": 1}, "option alpha: .*less than 1, got 1"),
        ({"test": "t-test"}, "option test: .*'none' or 'mcnemar', got 't-test'"),
        ({"patience": 0}, "option patience: .*got 0"),
        ({"min_delta": 0.1, "test": "mcnemar"}, "judged by one of the two; leave the other out"),
    ],
)
def test_a_wrong_rule_is_the_users_mistake(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"recipe {name}.*{message}"):
        load_recipe(name, options)
