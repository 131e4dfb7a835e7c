from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.results import collect_results
from orchestrator.report.verdict import about_ensembles, cautions, verdict, verdict_of
from orchestrator.schedule.moment import Moment
from tests.orchestrator.report.synthetic_results import Story, program


def test_an_interval_above_zero_is_a_win(told: Story) -> None:
    said = verdict(collect_results(Moment(told.program, told.state)))
    assert said.tone == "better"
    assert (
        "beats the best single run on test: 93.33 % against 92.33 %, +1.00 points" in said.sentence
    )


def test_an_interval_across_zero_cannot_tell(tmp_path: Path) -> None:
    story = Story(program(tmp_path), wide=0.02).tell()
    said = verdict(collect_results(Moment(story.program, story.state)))
    assert said.tone == "unsure" and said.sentence.startswith("Cannot tell whether the served soup")


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


def test_the_ensemble_is_compared_without_claiming_more_than_the_intervals(told: Story) -> None:
    (sentence,) = about_ensembles(collect_results(Moment(told.program, told.state)))
    assert "at 4 times the work per image" in sentence and "does not settle which" in sentence


def test_a_small_selection_split_and_failed_runs_are_warned_of(told: Story) -> None:
    said = " ".join(cautions(collect_results(Moment(told.program, told.state))))
    assert "1 of 5 runs failed" in said
    assert "only 400 images" in said and "standard error of 1.3 points" in said


def test_ingredients_outside_the_basin_are_named(told: Story) -> None:
    known: dict[str, Any] = collect_results(Moment(told.program, told.state))
    decision = {**known["soups"][-1]["decisions"][-1], "reason": "outside the basin: it dips"}
    known["soups"][-1]["decisions"].append(decision)
    said = " ".join(cautions(known))
    assert f"1 ingredient outside the basin of the best one ({decision['run']})" in said


@pytest.mark.parametrize(("uniform", "warned"), [(0.3, True), (0.78, True), (0.9, False)])
def test_a_uniform_soup_far_below_every_member_hints_at_basins(
    told: Story, uniform: float, warned: bool
) -> None:
    known: dict[str, Any] = collect_results(Moment(told.program, told.state))
    (soup,) = [soup for soup in known["soups"] if soup["recipe"] == "uniform"]
    soup["scores"]["val"] = {**soup["scores"]["val"], "top1": uniform}
    said = [each for each in cautions(known) if "soup.basin" in each]
    assert bool(said) == warned
    if warned:
        lowest = "far below each of its members (the lowest 90.25 %)"
        assert f"{100 * uniform:.2f} % on val, {lowest}" in said[0]
    policy = {**soup, "recipe": "uniform@average"}
    assert not any("soup.basin" in each for each in cautions({**known, "soups": [policy]}))


def test_a_loss_is_far_below_when_it_is_high(told: Story) -> None:
    known: dict[str, Any] = {**collect_results(Moment(told.program, told.state)), "metric": "nll"}
    assert not any("soup.basin" in each for each in cautions(known))
    (soup,) = [soup for soup in known["soups"] if soup["recipe"] == "uniform"]
    soup["scores"]["val"] = {**soup["scores"]["val"], "nll": 1.9}
    (said,) = [each for each in cautions(known) if "soup.basin" in each]
    assert "1.9000 nats on val" in said


def test_a_large_selection_split_is_not_warned_of(told: Story) -> None:
    known: dict[str, Any] = collect_results(Moment(told.program, told.state))
    known["splits"]["val"]["count"] = 50_000
    assert not any("selection split" in each for each in cautions(known))
