"""Figures show what results.json and analysis.json say, and nothing else."""

from typing import Any

from orchestrator.report.csv_files import summary_csv
from orchestrator.report.html.calibration import reliability_figure
from orchestrator.report.html.coefficients import coefficients_figure
from orchestrator.report.html.errors import bias_variance_figure, confusion_figure
from orchestrator.report.html.model_map import model_map_figure
from orchestrator.report.html.plot_style import Figure, FigureOrReason, MissingFigure
from orchestrator.report.html.robustness import robustness_figures
from orchestrator.report.html.selection_steps import selection_steps_figure
from orchestrator.report.html.tables import recipe_table
from orchestrator.report.html.weight_space import barrier_figure, cosines_figure
from orchestrator.report.model_rows import rows
from orchestrator.report.verdict import undetectable
from orchestrator.schedule.moment import Moment
from tests.orchestrator.report.synthetic_analysis import COMPONENTS, Tale
from tests.orchestrator.report.synthetic_results import Story


def figure(drawing: FigureOrReason) -> Figure:
    assert isinstance(drawing, Figure)
    return drawing


def test_the_recipe_table_has_every_column_and_model(tale: Tale) -> None:
    table = recipe_table(tale.known, tale.analysis, list(rows(tale.known)))
    titles = [column.title for column in table.columns]
    assert {"macro-F1", "NLL", "ECE", "ECE, T", "worst class", "tastes", "seconds", "p"} <= {
        *titles
    }
    assert "vs best single on test" in titles
    assert len(table.rows) == 1 + len(tale.known["soups"]) + len(tale.known["ensembles"])
    assert all(len(row.cells) == len(titles) for row in table.rows)
    assert "4 of 4 + base" in [row.cells[1].text for row in table.rows]


def test_every_model_has_a_place_on_the_map_and_the_scatter(tale: Tale) -> None:
    models = list(rows(tale.known))
    for drawing in (
        model_map_figure(tale.analysis, models),
        *robustness_figures(tale.known, models),
    ):
        points = [x for trace in figure(drawing).data for x in trace["x"]]
        assert len(points) == len(tale.analysis["models"])


def test_the_curve_of_wise_ft_is_a_line_from_base_to_fine_tuned_weights(tale: Tale) -> None:
    wise = next(soup for soup in tale.known["soups"] if soup["recipe"] == "wise_ft")
    scores = {"test": {"top1": 0.5}, "ood:sketch": {"top1": 0.25}}
    better = {"test": {"top1": 0.75}, "ood:sketch": {"top1": 0.5}}
    wise["curve"] = [
        {"alpha": 1.0, "mix": wise["mix"], "scores": better},
        {"alpha": 0.5, "mix": wise["mix"], "scores": {}},
        {"alpha": 0.0, "mix": wise["mix"], "scores": scores},
    ]
    drawn = figure(*robustness_figures(tale.known, list(rows(tale.known))))
    line = drawn.data[0]
    assert (line["x"], line["y"]) == ([50.0, 75.0], [25.0, 50.0]) and "lines" in line["mode"]
    assert line["name"].startswith("wise_ft") and "alpha 1" in line["customdata"][1]
    assert "dotted" in drawn.caption
    wise["curve"] = []
    assert "dotted" not in figure(*robustness_figures(tale.known, list(rows(tale.known)))).caption


def test_the_path_shows_candidates_with_scores_and_the_served_recipe_first(tale: Tale) -> None:
    drawn = figure(selection_steps_figure(tale.known))
    labels = [choice.label for choice in drawn.choices]
    assert labels[0] == "greedy" and {"wise_ft", "learned", "pruned"} <= set(labels)
    assert "uniform" not in labels, "it decides nothing by a score"
    wise = next(choice for choice in drawn.choices if choice.label == "wise_ft")
    assert wise.data[1]["x"][3] == "4 · alpha 0.3" and len(wise.data[0]["y"]) == 11


def test_a_mix_without_components_is_one_column_that_sums_to_one(tale: Tale) -> None:
    drawn = figure(coefficients_figure(tale.known))
    heat = drawn.data[0]
    assert "learned" not in heat["x"] and heat["y"][-1] == "base"
    for column in zip(*heat["z"], strict=True):
        assert abs(sum(value or 0 for value in column) - 1) < 1e-9
    learned = drawn.choices[1]
    assert learned.label == "learned" and learned.data[0]["x"] == ["all the rest", *COMPONENTS]


def test_checkpoints_of_one_run_have_rows_of_their_own(tale: Tale) -> None:
    run, *_ = (each["representative"] for each in tale.known["runs"])
    first, second = f"{run.partition('/')[0]}/00000003-1", f"{run.partition('/')[0]}/00000006-1"
    mix = {"divisor": 2, "weights": [[first, 1], [second, 1]]}
    soups = [soup | {"mix": mix} for soup in tale.known["soups"][:1]]
    heat = figure(coefficients_figure(tale.known | {"soups": soups})).data[0]
    assert [name.partition(" of ")[0] for name in heat["y"]] == ["step 3", "step 6"]
    assert heat["z"] == [[0.5], [0.5]]


def test_cosines_have_a_view_per_component(tale: Tale) -> None:
    drawn = figure(cosines_figure(tale.known, tale.analysis))
    assert [choice.label for choice in drawn.choices] == ["all weights", *COMPONENTS]
    assert all(row[i] == 1 for i, row in enumerate(drawn.data[0]["z"]))


def test_reliability_and_confusion_show_both_models_on_every_split(tale: Tale) -> None:
    for drawing in (reliability_figure(tale.analysis), confusion_figure(tale.known, tale.analysis)):
        drawn = figure(drawing)
        assert [choice.label for choice in drawn.choices] == ["test", "val", "ood:sketch"]
        assert {trace["xaxis"] for trace in drawn.data} == {"x", "x2"}


def test_the_parts_of_the_loss_add_up(tale: Tale) -> None:
    bars = figure(bias_variance_figure(tale.known, tale.analysis)).data
    for axis in ("x", "x2"):
        *parts, total = [trace["y"] for trace in bars if trace["xaxis"] == axis]
        for whole, *values in zip(total, *parts, strict=True):
            assert abs(whole - sum(values)) < 1e-6


def test_a_way_that_does_not_dip_has_no_barrier(tale: Tale) -> None:
    assert "no barrier" in figure(barrier_figure(tale.known, tale.analysis)).caption
    deep: Any = {**tale.analysis, "barrier": {**tale.analysis["barrier"], "height": 0.034}}
    assert "dips 3.40 points" in figure(barrier_figure(tale.known, deep)).caption


def test_what_an_analysis_lacks_is_left_out(tale: Tale) -> None:
    poor: Any = {**tale.analysis, "geometry": [], "barrier": None}
    poor["splits"] = {
        name: {**each, "map": None, "details": {}, "bias_variance": {}, "paired": None}
        for name, each in tale.analysis["splits"].items()
    }
    models = list(rows(tale.known))
    drawings = [
        model_map_figure(poor, models),
        cosines_figure(tale.known, poor),
        barrier_figure(tale.known, poor),
    ]
    drawings += [
        reliability_figure(poor),
        confusion_figure(tale.known, poor),
        bias_variance_figure(tale.known, poor),
    ]
    assert all(isinstance(each, MissingFigure) and each.why for each in drawings)
    assert list(undetectable(tale.known, poor)) == []


def test_a_gain_too_small_for_the_selection_split_is_warned_of(tale: Tale) -> None:
    small: Any = {**tale.analysis, "splits": dict(tale.analysis["splits"])}
    paired = {**small["splits"]["val"]["paired"], "detectable": 0.5}
    small["splits"]["val"] = {**small["splits"]["val"], "paired": paired}
    (sentence,) = undetectable(tale.known, small)
    assert "only a gain of 50.00 points" in sentence


def test_new_columns_of_the_summary_stand_at_the_end(told: Story, tale: Tale) -> None:
    text = summary_csv(Moment(told.program, told.state), tale.known, tale.analysis)
    header = text.splitlines()[0].split(",")
    start = header.index("tastes")
    assert "worst_class" not in " ".join(header[:start])
    assert header[start : start + 4] == ["tastes", "seconds", "batchnorm", "val worst_class"]
    assert header[-1] == "ood:sketch ece_scaled"
