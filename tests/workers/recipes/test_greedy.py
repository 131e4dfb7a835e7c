"""Greedy against the textbook loop on random tables of scores, also in random order and with
replacement."""

import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.recipes.score_tables import CONTEXT, Table, answer, run_recipe, tables
from workers.merging.recipe_driver import advance
from workers.recipes import load_recipe
from workers.recipes.greedy import Greedy
from workers.recipes.greedy_random import GreedyRandom
from workers.recipes.greedy_replacement import GreedyReplacement
from workers.types import Answer, FirstAtLeast, FirstResult, Ingredient, Mix, Soup, TasteResult


def textbook(table: Table, order: list[Ingredient], strict: bool) -> tuple[list[str], float, int]:
    """The published loop: one candidate after the other, every taste complete."""
    members, score, num_tastes = [order[0].name], order[0].score, 0
    for candidate in order[1:]:
        after = table.mean([*members, candidate.name])
        num_tastes += 1
        if after > score or (after == score and not strict):
            members, score = [*members, candidate.name], after
    return members, score, num_tastes


def caruana(table: Table, passes: int, strict: bool) -> tuple[dict[str, int], float]:
    """A bag that grows by one copy at a time; passes offer all candidates, the first the others."""
    order = [each.name for each in table.best_first()]
    bag, score = [order[0]], table.mean([order[0]])
    for number in range(passes):
        grown = False
        for name in order if number else order[1:]:
            if set(bag) == {name}:
                continue
            after = table.score(in_lowest_terms([*bag, name]))
            if after > score or (after == score and not strict):
                bag, score, grown = [*bag, name], after, True
        if not grown:
            break
    return {name: bag.count(name) for name in bag}, score


def in_lowest_terms(bag: list[str]) -> Mix:
    """The bag divided by the greatest common divisor of its counts."""
    for by in range(len(bag), 1, -1):
        if all(bag.count(name) % by == 0 for name in bag):
            bag = [name for name in dict.fromkeys(bag) for _ in range(bag.count(name) // by)]
            break
    weights = tuple((name, float(bag.count(name))) for name in dict.fromkeys(bag))
    return Mix(weights=weights, divisor=float(len(bag)))


ties = st.sampled_from(["accept", "strict"])


@settings(deadline=None)
@given(table=tables, tie=ties, stops_early=st.booleans())
def test_greedy_makes_the_textbooks_soup_whatever_is_stopped_early(
    table: Table, tie: str, stops_early: bool
) -> None:
    soup, _ = run_recipe(table, load_recipe("greedy", {"tie": tie}), stops_early)
    members, score, num_tastes = textbook(table, table.best_first(), strict=tie == "strict")
    assert soup.mix == Mix.mean(members)
    assert soup.score == score
    assert len(soup.decisions) == num_tastes + 1
    assert [each.candidate for each in soup.decisions if each.accepted] == members


@settings(deadline=None)
@given(
    table=tables,
    recipe=st.sampled_from(
        [Greedy(), Greedy(patience=2), Greedy(min_delta=0.1), GreedyRandom(orders=3),
         GreedyReplacement(), GreedyReplacement(patience=1)]
    ),
)  # fmt: skip
def test_no_soup_that_grows_from_the_best_single_model_is_worse_than_it(
    table: Table, recipe: Greedy | GreedyRandom | GreedyReplacement
) -> None:
    soup, _ = run_recipe(table, recipe)
    assert soup.score is not None
    assert soup.score == table.score(soup.mix) >= max(each.score for each in table.pool)


@settings(deadline=None)
@given(table=tables, cut=st.integers(0, 8))
def test_a_replayed_recipe_asks_what_it_asked_before(table: Table, cut: int) -> None:
    soup, questions = run_recipe(table, Greedy())
    answers: list[Answer] = [answer(table, each, stops_early=True) for each in questions]
    for num in range(min(cut, len(answers))):
        assert advance(Greedy(), table.pool, tuple(answers[:num]), CONTEXT) == questions[num]
    assert advance(Greedy(), table.pool, tuple(answers), CONTEXT) == soup


@settings(deadline=None)
@given(table=tables, seed=st.integers(0, 3), orders=st.integers(1, 4), best=st.booleans())
def test_random_greedy_makes_the_best_of_the_textbooks_soups_in_its_orders(
    table: Table, seed: int, orders: int, best: bool
) -> None:
    recipe = GreedyRandom(seed=seed, orders=orders, best_first=best)
    soup, _ = run_recipe(table, recipe)
    drawn = [recipe.order(table.pool, CONTEXT.seed, number) for number in range(orders)]
    made = [textbook(table, order, strict=False) for order in drawn]
    scores = [score for _, score, _ in made]
    chosen = scores.index(max(scores))
    assert soup.mix == Mix.mean(made[chosen][0])
    assert soup.score == max(scores)
    if orders > 1:
        told = soup.decisions[:orders]
        assert [each.after for each in told] == scores
        assert [each.accepted for each in told].index(True) == chosen
        assert f"deviation {statistics.stdev(scores):.4f}" in told[0].reason
    if best:
        assert all(order[0] == table.best_first()[0] for order in drawn)


def test_an_order_follows_from_seeds_and_names_and_is_shuffled() -> None:
    table = Table(seed=1, num=9)
    recipe = GreedyRandom(best_first=False)
    orders = [
        GreedyRandom(best_first=False, seed=seed).order(table.pool, experiment_seed, number)
        for seed in range(3) for experiment_seed in range(3) for number in range(3)
    ]  # fmt: skip
    assert len({tuple(order) for order in orders}) == len(orders)
    assert all(sorted(order, key=str) == sorted(table.pool, key=str) for order in orders)
    mixed = random.Random(0).sample(table.pool, 9)
    assert recipe.order(tuple(mixed), 0, 0) == recipe.order(table.pool, 0, 0)
    fewer = [each for each in recipe.order(table.pool, 0, 0) if each != table.pool[4]]
    assert recipe.order((*table.pool[:4], *table.pool[5:]), 0, 0) == fewer


@settings(deadline=None)
@given(table=tables, passes=st.integers(1, 5), tie=ties)
def test_greedy_with_replacement_grows_the_bag_of_the_textbook(
    table: Table, passes: int, tie: str
) -> None:
    soup, _ = run_recipe(table, load_recipe("greedy_replacement", {"passes": passes, "tie": tie}))
    counts, score = caruana(table, passes, strict=tie == "strict")
    total = sum(counts.values())
    assert [name for name, _ in soup.mix.weights] == list(counts)
    for name, weight in soup.mix.weights:
        assert weight == int(weight) > 0
        assert weight / soup.mix.divisor == pytest.approx(counts[name] / total, abs=1e-15)
    assert soup.score == score
    once, _ = run_recipe(table, load_recipe("greedy", {"tie": tie}))
    assert passes > 1 or (soup.mix, soup.decisions) == (once.mix, once.decisions)


def test_a_further_pass_says_so_and_the_first_that_changes_nothing_is_the_last() -> None:
    pool = tuple(Ingredient(name=n, run=n, score=s) for n, s in zip("ab", (0.5, 0.4), strict=True))
    better = TasteResult(score=0.6, at_most=0.6, samples=20)
    worse = TasteResult(score=0.1, at_most=0.1, samples=20)
    first, last = (
        FirstResult(index=0, tried=(better,)),
        FirstResult(index=None, tried=(worse, worse)),
    )
    soup = advance(GreedyReplacement(passes=9), pool, (first, last), CONTEXT)
    assert isinstance(soup, Soup)
    assert [each.candidate for each in soup.decisions] == ["a", "b", "a", "b"]
    assert [each.reason.startswith("pass 2: would") for each in soup.decisions] == [
        False, False, True, True,
    ]  # fmt: skip


def test_greedy_asks_what_it_always_asked() -> None:
    """Questions are in ledgers, so those of the defaults must never change."""
    pool = tuple(Ingredient(name=f"r{i}", run=f"r{i}", score=1 - i / 1000) for i in range(70))
    asked = advance(Greedy(), pool, (), CONTEXT)
    mixes = tuple(Mix.mean(["r0", f"r{i}"]) for i in range(1, 65))
    assert asked == FirstAtLeast(mixes=mixes, at_least=1.0, strict=False)
    bound = TasteResult(score=None, at_most=0.9, samples=3)
    found = FirstResult(index=None, tried=(bound,) * 64)
    assert advance(Greedy(), pool, (found,), CONTEXT) == FirstAtLeast(
        mixes=tuple(Mix.mean(["r0", f"r{i}"]) for i in range(65, 70)), at_least=1.0
    )
    full = TasteResult(score=1.0, at_most=1.0, samples=20)
    then = advance(Greedy(), pool, (FirstResult(index=1, tried=(bound, full)),), CONTEXT)
    assert isinstance(then, FirstAtLeast)
    assert (then.mixes[0], len(then.mixes)) == (Mix.mean(["r0", "r2", "r3"]), 64)


def test_every_candidate_gets_a_reason_with_its_numbers() -> None:
    pool = tuple(
        Ingredient(name=n, run=n, score=s) for n, s in zip("abcd", (9, 8, 7, 6), strict=True)
    )
    full = TasteResult(score=10, at_most=10, samples=20)
    tie = TasteResult(score=10, at_most=10, samples=20)
    worse = TasteResult(score=9.5, at_most=9.5, samples=20)
    soup = advance(
        Greedy(),
        pool,
        (FirstResult(index=0, tried=(full,)), FirstResult(index=None, tried=(worse, tie))),
        CONTEXT,
    )
    assert isinstance(soup, Soup)
    assert [each.reason for each in soup.decisions] == [
        "the best single model starts the soup with 9.0000",
        "raises the score from 9.0000 to 10.0000",
        "would lower the score from 10.0000 to 9.5000",
        "keeps the score at 10.0000, and the rule accepts ties",
    ]
    assert [b.before == a.after for a, b in pairwise(soup.decisions[:3])] == [True, True]
    stopped = TasteResult(score=None, at_most=8.5, samples=12)
    soup = advance(Greedy(), pool[:2], (FirstResult(index=None, tried=(stopped,)),), CONTEXT)
    assert isinstance(soup, Soup)
    assert soup.mix.single == "a"
    assert soup.decisions[1].at_most == 8.5
    assert (
        soup.decisions[1].reason
        == "after 12 images it could reach at most 8.5000, the soup without it scores 9.0000"
    )


def test_an_answer_that_does_not_fit_the_question_is_our_mistake() -> None:
    pool = tuple(Ingredient(name=n, run=n, score=1.0) for n in "abc")
    with pytest.raises(AssertionError, match="found does not answer first"):
        advance(Greedy(), pool, (FirstResult(index=None, tried=()),), CONTEXT)
