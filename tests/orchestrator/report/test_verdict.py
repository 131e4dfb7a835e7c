import copy

import pytest

from orchestrator.report.verdict import about_ensembles, cautions, undetectable, verdict, verdict_of
from tests.orchestrator.report.scenario import Json, Scenario


def test_an_interval_above_zero_is_a_win(finished: Scenario) -> None:
    found = verdict(finished.results())
    assert found.tone == "better"
    assert "beats the best single run on test: 79.83 % against 74.33 %, +5.50 points" in (
        found.sentence
    )


def test_an_interval_across_zero_cannot_tell(finished: Scenario) -> None:
    results = finished.results()
    _soup(results, "greedy")["vs_best_single"]["test"]["ci95"] = [-0.01, 0.12]
    found = verdict(results)
    assert found.tone == "unsure"
    assert found.sentence.startswith("Cannot tell whether the served soup")


@pytest.mark.parametrize(
    ("metric", "interval", "expected"),
    [
        ("top1", (0.01, 0.02), "better"),
        ("top1", (-0.02, -0.01), "worse"),
        ("top1", (-0.01, 0.01), "unsure"),
        ("top1", (0.0, 0.01), "unsure"),
        ("nll", (-0.2, -0.1), "better"),
        ("nll", (0.1, 0.2), "worse"),
    ],
)
def test_less_is_better_for_a_loss(
    metric: str, interval: tuple[float, float], expected: str
) -> None:
    assert verdict_of({"metric": metric, "delta": 0.0, "ci95": interval}) == expected


def test_the_ensemble_claims_no_more_than_its_interval(
    finished: Scenario,
) -> None:
    (sentence,) = about_ensembles(finished.results())
    assert "at 4 times the work per image" in sentence and "does not settle which" in sentence


def test_a_small_selection_split_and_failed_runs_are_warned_of(finished: Scenario) -> None:
    text = " ".join(cautions(finished.results()))
    assert "1 of 5 runs failed" in text
    assert "only 400 images" in text and "standard error of 2.2 points" in text


def test_ingredients_outside_the_basin_are_named(finished: Scenario) -> None:
    results = finished.results()
    decisions = _soup(results, "greedy")["decisions"]
    decisions.append({**decisions[-1], "reason": "outside the basin: it dips"})
    text = " ".join(cautions(results))
    assert f"1 ingredient outside the basin of the best one ({decisions[-1]['run']})" in text


@pytest.mark.parametrize(("uniform", "is_warned"), [(0.3, True), (0.45, True), (0.5, False)])
def test_a_uniform_soup_far_below_every_member_hints_at_basins(
    finished: Scenario, uniform: float, is_warned: bool
) -> None:
    results = finished.results()
    soup = _soup(results, "uniform")
    soup["scores"]["val"]["top1"] = uniform
    hints = [sentence for sentence in cautions(results) if "soup.basin" in sentence]
    assert bool(hints) == is_warned
    if is_warned:
        assert f"{100 * uniform:.2f} % on val" in hints[0] and "55.75 %" in hints[0]
    policy = {**soup, "recipe": "uniform@average"}
    cautious = cautions({**results, "soups": [policy]})
    assert not any("soup.basin" in sentence for sentence in cautious)


def test_a_loss_is_far_below_when_it_is_high(finished: Scenario) -> None:
    results = {**finished.results(), "metric": "nll"}
    assert not any("soup.basin" in sentence for sentence in cautions(results))
    _soup(results, "uniform")["scores"]["val"]["nll"] = 9.0
    (hint,) = [sentence for sentence in cautions(results) if "soup.basin" in sentence]
    assert "9.0000 nats on val" in hint


def test_a_large_selection_split_is_not_warned_of(finished: Scenario) -> None:
    results = finished.results()
    results["splits"]["val"]["count"] = 50_000
    assert not any("selection split" in sentence for sentence in cautions(results))


def test_a_gain_too_small_for_the_selection_split_is_warned_of(finished: Scenario) -> None:
    analysis = copy.deepcopy(finished.analysis)
    assert list(undetectable(finished.results(), None)) == []
    analysis["splits"]["val"]["paired"]["detectable"] = 0.5
    (sentence,) = undetectable(finished.results(), analysis)
    assert "only a gain of 50.00 points" in sentence


def _soup(results: Json, recipe: str) -> Json:
    (soup,) = [soup for soup in results["soups"] if soup["recipe"] == recipe]
    return soup
