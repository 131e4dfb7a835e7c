"""Greedy against the textbook loop, on random tables of scores."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.merge import advance
from workers.recipes.greedy import Greedy
from workers.types import Answer, First, Found, Ingredient, Mix, Soup, Tasting


class Table:
    """Made-up scores of all mixes, on a split of 20 images so that ties are common."""

    def __init__(self, seed: int, num: int) -> None:
        self.seed = seed
        names = [f"run{i}/00000001" for i in range(num)]
        self.pool = tuple(
            Ingredient(name=name, run=name.split("/")[0], score=self.score(Mix.mean([name])))
            for name in names
        )

    def score(self, mix: Mix) -> float:
        return random.Random(f"{self.seed} {mix.key}").randrange(20) / 20


def textbook(table: Table, strict: bool) -> tuple[list[str], float, int]:
    """The published loop: one candidate after the other, every taste complete."""
    order = sorted(table.pool, key=lambda each: (-each.score, each.run))
    members, score, num_tastes = [order[0].name], order[0].score, 0
    for candidate in order[1:]:
        after = table.score(Mix.mean([*members, candidate.name]))
        num_tastes += 1
        if after > score or (after == score and not strict):
            members, score = [*members, candidate.name], after
    return members, score, num_tastes


def answer(table: Table, question: First, stops_early: bool) -> Found:
    tried = []
    for index, mix in enumerate(question.mixes):
        score = table.score(mix)
        met = question.is_met_by(score)
        if met or not stops_early:
            tried.append(Tasting(score=score, at_most=score, samples=20))
        else:
            tried.append(Tasting(score=None, at_most=question.at_least - 0.01, samples=7))
        if met:
            return Found(index=index, tried=tuple(tried))
    return Found(index=None, tried=tuple(tried))


def cooked(table: Table, recipe: Greedy, stops_early: bool) -> tuple[Soup, list[Answer]]:
    answers: list[Answer] = []
    while True:
        outcome = advance(recipe, table.pool, tuple(answers))
        if isinstance(outcome, Soup):
            return outcome, answers
        assert isinstance(outcome, First)
        answers.append(answer(table, outcome, stops_early))


tables = st.builds(Table, seed=st.integers(0, 10**6), num=st.integers(1, 9))


@settings(deadline=None)
@given(table=tables, tie=st.sampled_from(["accept", "strict"]), stops_early=st.booleans())
def test_greedy_makes_the_textbooks_soup_whatever_is_stopped_early(
    table: Table, tie: str, stops_early: bool
) -> None:
    recipe = Greedy(tie=tie)  # type: ignore[arg-type]
    soup, _ = cooked(table, recipe, stops_early)
    members, score, num_tastes = textbook(table, strict=tie == "strict")
    assert soup.mix == Mix.mean(members)
    assert soup.score == score
    assert len(soup.decisions) == num_tastes + 1
    assert [each.candidate for each in soup.decisions if each.accepted] == members


@settings(deadline=None)
@given(table=tables)
def test_greedy_is_never_worse_than_the_best_single_model(table: Table) -> None:
    soup, _ = cooked(table, Greedy(), stops_early=True)
    assert soup.score is not None
    assert soup.score >= max(each.score for each in table.pool)


@settings(deadline=None)
@given(table=tables, cut=st.integers(0, 8))
def test_a_replayed_recipe_asks_what_it_asked_before(table: Table, cut: int) -> None:
    soup, answers = cooked(table, Greedy(), stops_early=True)
    for num in range(min(cut, len(answers))):
        asked = advance(Greedy(), table.pool, tuple(answers[:num]))
        assert isinstance(asked, First) and asked == advance(
            Greedy(), table.pool, tuple(answers[:num])
        )
    assert advance(Greedy(), table.pool, tuple(answers)) == soup


def test_every_candidate_gets_a_reason_with_its_numbers() -> None:
    pool = tuple(
        Ingredient(name=n, run=n, score=s) for n, s in zip("abcd", (9, 8, 7, 6), strict=True)
    )
    full = Tasting(score=10, at_most=10, samples=20)
    tie = Tasting(score=10, at_most=10, samples=20)
    worse = Tasting(score=9.5, at_most=9.5, samples=20)
    soup = advance(
        Greedy(), pool, (Found(index=0, tried=(full,)), Found(index=None, tried=(worse, tie)))
    )
    assert isinstance(soup, Soup)
    assert [each.reason for each in soup.decisions] == [
        "the best single model starts the soup with 9.0000",
        "raises the score from 9.0000 to 10.0000",
        "would lower the score from 10.0000 to 9.5000",
        "keeps the score at 10.0000, and the rule accepts ties",
    ]
    stopped = Tasting(score=None, at_most=8.5, samples=12)
    soup = advance(Greedy(), pool[:2], (Found(index=None, tried=(stopped,)),))
    assert isinstance(soup, Soup)
    assert soup.mix.single == "a"
    assert soup.decisions[1].at_most == 8.5
    assert "after 12 images it could reach at most 8.5000" in soup.decisions[1].reason


def test_an_answer_that_does_not_fit_the_question_is_our_mistake() -> None:
    pool = tuple(Ingredient(name=n, run=n, score=1.0) for n in "abc")
    with pytest.raises(AssertionError, match="found does not answer first"):
        advance(Greedy(), pool, (Found(index=None, tried=()),))
