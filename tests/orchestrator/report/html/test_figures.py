"""One check per kind of figure, against results.json and analysis.json."""

import copy

import pytest

from orchestrator.report.html.calibration import reliability_figure
from orchestrator.report.html.coefficients import coefficients_figure
from orchestrator.report.html.differences import differences_figure
from orchestrator.report.html.errors import bias_variance_figure, confusion_figure
from orchestrator.report.html.learning_curves import learning_curves
from orchestrator.report.html.model_map import model_map_figure
from orchestrator.report.html.plot_style import Figure, FigureOrReason, MissingFigure
from orchestrator.report.html.robustness import robustness_figures
from orchestrator.report.html.selection_steps import selection_steps_figure
from orchestrator.report.html.timeline import timeline
from orchestrator.report.html.weight_space import barrier_figure, cosines_figure
from orchestrator.report.model_rows import rows
from tests.orchestrator.report.scenario import RECIPES, Scenario
from tests.simulator.linear_world import COMPONENTS


def drawn(figure: FigureOrReason) -> Figure:
    assert isinstance(figure, Figure)
    return figure


def test_every_difference_has_its_interval(finished: Scenario) -> None:
    results = finished.results()
    panels = drawn(differences_figure(results, rows(results))).data
    assert [panel["name"] for panel in panels] == ["val", "test", "ood:sketch"]
    assert all(len(panel["x"]) == len(RECIPES) + 1 for panel in panels)
    (soup,) = [soup for soup in results["soups"] if soup["recipe"] == "greedy"]
    delta, panel = soup["vs_best_single"]["test"], panels[1]
    place = panel["y"].index("soup greedy")
    low = panel["x"][place] - panel["error_x"]["arrayminus"][place]
    assert panel["x"][place] == pytest.approx(100 * delta["delta"])
    assert low == pytest.approx(100 * delta["ci95"][0])


def test_every_model_is_on_the_map_and_in_the_scatter_plot(finished: Scenario) -> None:
    results = finished.results()
    models = list(rows(results))
    (scatter,) = robustness_figures(results, models)
    map_traces = drawn(model_map_figure(finished.analysis, models)).data
    assert sum(len(trace["x"]) for trace in map_traces) == len(finished.analysis["models"])
    named = {trace["name"] for trace in map_traces if "text" in trace["mode"]}
    assert named == {"best single", "served soup", "ensembles"}
    points = [trace for trace in drawn(scatter).data if "lines" not in trace["mode"]]
    assert sum(len(trace["x"]) for trace in points) == len(finished.analysis["models"])


def test_the_curve_of_wise_ft_runs_from_the_base_to_the_fine_tuned_weights(
    finished: Scenario,
) -> None:
    results = finished.results()
    (soup,) = [soup for soup in results["soups"] if soup["recipe"] == "wise_ft"]
    (figure,) = robustness_figures(results, rows(results))
    line = drawn(figure).data[0]
    assert line["name"].startswith("wise_ft") and "lines" in line["mode"]
    assert len(line["x"]) == len(soup["curve"]) == 11
    scores = {point["alpha"]: point["scores"] for point in soup["curve"]}
    assert line["x"][0] == pytest.approx(100 * scores[0]["test"]["top1"])
    assert line["y"][-1] == pytest.approx(100 * scores[1]["ood:sketch"]["top1"])
    soup["curve"] = []
    (figure,) = robustness_figures(results, rows(results))
    assert "dotted" not in drawn(figure).caption


def test_selection_steps_show_scored_candidates_and_the_served_recipe_first(
    finished: Scenario,
) -> None:
    figure = drawn(selection_steps_figure(finished.results()))
    views = {choice.label: choice.data for choice in figure.choices}
    assert next(iter(views)) == "greedy" and {"wise_ft", "learned", "pruned"} <= set(views)
    assert "uniform" not in views, "it decides nothing by a score"
    curve, candidates = views["wise_ft"]
    assert candidates["x"][3] == "4 · alpha 0.3" and len(curve["y"]) == 11


def test_a_mix_without_components_is_one_column_that_sums_to_one(finished: Scenario) -> None:
    figure = drawn(coefficients_figure(finished.results()))
    views = {choice.label: choice.data[0] for choice in figure.choices}
    overview = views["all recipes"]
    assert "learned" not in overview["x"] and overview["y"][-1] == "base"
    for recipe, column in zip(overview["x"], zip(*overview["z"], strict=True), strict=True):
        total = sum(value or 0 for value in column)
        assert total == pytest.approx(1), recipe
    assert views["learned"]["x"] == ["all the rest", *COMPONENTS]


def test_checkpoints_of_one_run_have_rows_of_their_own(finished: Scenario) -> None:
    results = finished.results()
    run = results["runs"][0]["id"]
    mix = {"divisor": 2, "weights": [[f"{run}/00000003-1", 1], [f"{run}/00000006-1", 1]]}
    soups = [soup | {"mix": mix} for soup in results["soups"][:1]]
    heat = drawn(coefficients_figure(results | {"soups": soups})).data[0]
    assert [name.partition(" of ")[0] for name in heat["y"]] == ["step 3", "step 6"]
    assert heat["z"] == [[0.5], [0.5]]


def test_cosines_have_a_view_per_component(finished: Scenario) -> None:
    figure = drawn(cosines_figure(finished.results(), finished.analysis))
    assert [choice.label for choice in figure.choices] == ["all weights", *COMPONENTS]
    heat = figure.data[0]["z"]
    assert all(row[i] == pytest.approx(1) for i, row in enumerate(heat))


def test_reliability_and_confusion_show_both_models_on_every_split(finished: Scenario) -> None:
    results, analysis = finished.results(), finished.analysis
    for figure in (reliability_figure(analysis), confusion_figure(results, analysis)):
        assert [choice.label for choice in drawn(figure).choices] == ["test", "val", "ood:sketch"]
        assert {trace["xaxis"] for trace in drawn(figure).data} == {"x", "x2"}


def test_the_parts_of_the_loss_add_up(finished: Scenario) -> None:
    bars = drawn(bias_variance_figure(finished.results(), finished.analysis)).data
    for axis in ("x", "x2"):
        *parts, total = [trace["y"] for trace in bars if trace["xaxis"] == axis]
        for whole, *values in zip(total, *parts, strict=True):
            assert whole == pytest.approx(sum(values), rel=1e-4)


def test_the_caption_says_whether_there_is_a_barrier(finished: Scenario) -> None:
    analysis = copy.deepcopy(finished.analysis)
    analysis["barrier"]["height"] = -0.01
    assert "no barrier" in drawn(barrier_figure(finished.results(), analysis)).caption
    analysis["barrier"]["height"] = 0.034
    assert "dips 3.40 points" in drawn(barrier_figure(finished.results(), analysis)).caption


def test_a_learning_curve_has_a_point_per_epoch(finished: Scenario) -> None:
    lines = {line["name"]: line for line in drawn(learning_curves(finished.moment)).data}
    assert len(lines[finished.expanded.runs[0].id]["y"]) == 3
    assert {"soup so far", "final greedy"} <= set(lines)


def test_the_timeline_has_a_bar_per_order(finished: Scenario) -> None:
    bars = {trace["name"]: trace for trace in drawn(timeline(finished.state)).data}
    assert len(bars["train"]["x"]) == 6 and {"taste", "blend", "analyse"} <= set(bars)


def test_parts_that_the_analysis_lacks_are_missing_figures(finished: Scenario) -> None:
    results, analysis = finished.results(), copy.deepcopy(finished.analysis)
    analysis |= {"geometry": [], "barrier": None}
    for split in analysis["splits"].values():
        split |= {"map": None, "details": {}, "bias_variance": {}, "paired": None}
    figures = [
        model_map_figure(analysis, rows(results)),
        cosines_figure(results, analysis),
        barrier_figure(results, analysis),
        reliability_figure(analysis),
        confusion_figure(results, analysis),
        bias_variance_figure(results, analysis),
    ]
    assert all(isinstance(figure, MissingFigure) and figure.why for figure in figures)
