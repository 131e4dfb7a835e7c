"""WiSE-FT: points on the line from the base to the fine-tuned weights."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.recipes.score_tables import CONTEXT, Table, run_recipe, tables
from workers.errors import UserError
from workers.merging.recipe_driver import advance
from workers.recipes import load_recipe
from workers.recipes.wise_ft import WiseFt, between
from workers.types import Ingredient, Mix, Soup, Taste, TasteResults

POOL = tuple(Ingredient(name=n, run=n, score=s) for n, s in zip("ab", (0.5, 0.6), strict=True))


@settings(deadline=None)
@given(
    alpha=st.floats(0, 1),
    base=st.floats(-10, 10),
    tuned=st.lists(st.floats(-10, 10), min_size=1, max_size=5),
)
def test_every_mix_is_on_the_line_between_base_and_mean(
    alpha: float, base: float, tuned: list[float]
) -> None:
    members = [f"run{i}" for i in range(len(tuned))]
    values = {"base/b": base, **dict(zip(members, tuned, strict=True))}
    mix = between("base/b", members, alpha)
    found = sum(weight * values[name] for name, weight in mix.weights) / mix.divisor
    mean = sum(tuned) / len(tuned)
    assert found == pytest.approx((1 - alpha) * base + alpha * mean, abs=1e-9)


@settings(deadline=None)
@given(table=tables, of=st.sampled_from(["best", "uniform"]))
def test_the_first_alpha_with_the_highest_score_is_chosen_and_all_have_a_decision(
    table: Table, of: str
) -> None:
    soup, (question,) = run_recipe(table, load_recipe("wise_ft", {"of": of}))
    scores = [table.score(mix) for mix in question.mixes]
    assert (soup.score, soup.mix) == (max(scores), question.mixes[scores.index(max(scores))])
    assert [each.candidate for each in soup.decisions] == [
        f"alpha {tenths / 10:g}" for tenths in range(11)
    ]
    assert [each.after for each in soup.decisions] == scores
    assert [each.accepted for each in soup.decisions].index(True) == scores.index(max(scores))
    assert sum(each.accepted for each in soup.decisions) == 1


@pytest.mark.parametrize(("of", "names"), [("best", ["b"]), ("uniform", ["b", "a"])])
def test_the_ends_are_the_base_and_what_others_taste_anyway(of: str, names: list[str]) -> None:
    asked = advance(load_recipe("wise_ft", {"of": of}), POOL, (), CONTEXT)
    assert isinstance(asked, Taste)
    assert asked.mixes[0].single == "base/b"
    assert asked.mixes[-1] == Mix.mean(names)
    size = float(len(names))
    weights = (*((name, 0.1) for name in names), ("base/b", 0.9 * size))
    assert asked.mixes[1] == Mix(weights=weights, divisor=size)


def test_a_reason_says_which_alpha_was_better() -> None:
    soup = advance(WiseFt(alphas=(0.25, 0.75)), POOL, (TasteResults(scores=(0.7, 0.7)),), CONTEXT)
    assert isinstance(soup, Soup)
    assert [each.reason for each in soup.decisions] == [
        "the highest selection score, 0.7000",
        "its score 0.7000 is not above that of alpha 0.25",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": []}, "option alphas: .*at least 1 item"),
        ({"alphas": [0.5, 1.5]}, "option alphas.1: .*less than or equal to 1, got 1.5"),
        ({"of": "greedy"}, "option of: .*'best' or 'uniform', got 'greedy'"),
    ],
)
def test_a_wrong_option_is_the_users_mistake(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"recipe wise_ft, {message}"):
        load_recipe("wise_ft", options)
