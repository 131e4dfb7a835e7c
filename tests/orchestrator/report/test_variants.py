"""Folds, EMAs, early ends, stacking and several cohorts in every part of the report."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.report.csv_files import run_csv, summary_csv
from orchestrator.report.html.learning_curves import learning_curves
from orchestrator.report.html.page import report_html
from orchestrator.report.html.plot_style import Figure
from orchestrator.report.results import collect_results
from orchestrator.report.terminal.event_lines import line
from orchestrator.report.terminal.tables import final_table, status_json, status_view
from orchestrator.report.verdict import about_ensembles, cautions
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import live
from tests.simulator.world import World
from workers.types import Trained

Finished = tuple[ExpandedExperiment, State, World]


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two settings on three folds, with EMAs, patience and both ensembles."""
    plan = simulated(
        2,
        epochs=6,
        data={"folds": 3},
        train={"model_ema_decay": 0.999, "patience": 1},
        ensemble={"stacking": True},
    )
    world = World.at(tmp_path_factory.mktemp("folded"), plan)
    return plan, live(world), world


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    plan = simulated(
        2, sweep={"space": {"model.name": ["test_vit", "test_resnet"]}}, ensemble={"stacking": True}
    )
    world = World.at(tmp_path_factory.mktemp("cohorts"), plan)
    return plan, live(world), world


def text(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(table: str, start: str) -> str:
    return next(line for line in table.splitlines() if start in line)


def test_rows_show_fold_ema_and_early_end(folded: Finished) -> None:
    plan, state, _ = folded
    table = text(final_table(collect_results(Moment(plan, state))))
    run = next(run for run in plan.runs if state.run(run.id).ended_early)
    epochs = state.run(run.id).trained_to // 7
    setting = f"seed {run.seed}, fold {run.fold}"
    end = f"ended early at epoch {epochs}"
    assert f"{setting}; {end}" in row_of(table, f" {run.id} ")
    assert f"{setting}, ema 0.999; {end}" in row_of(table, f"{run.id}-ema")


def test_an_ensemble_has_no_score_on_what_it_was_fitted_on(
    folded: Finished, cohorts: Finished
) -> None:
    assert "fitted out of fold" in row_of(
        text(final_table(collect_results(Moment(*folded[:2])))), "stacking"
    )
    results = collect_results(Moment(*cohorts[:2]))
    stacked = row_of(text(final_table(results)), "ensemble stacking")
    assert "fitted on val" in stacked and " – " in stacked
    rows = list(csv.DictReader(io.StringIO(summary_csv(Moment(*cohorts[:2]), results))))
    assert rows[-1]["label"] == "stacking" and rows[-1]["val top1"] == "" and rows[-1]["test top1"]
    assert "–" in report_html(results, Moment(*cohorts[:2]))


def test_the_terminal_warns_of_a_small_selection_split(folded: Finished) -> None:
    table = text(final_table(collect_results(Moment(*folded[:2]))))
    assert "Warning: The selection split has only 40 images" in table


def test_emas_are_not_counted_as_runs(folded: Finished) -> None:
    plan, state, _ = folded
    results = collect_results(Moment(plan, state))
    assert len(results["runs"]) == 12
    assert "soup of 6 runs" in report_html(results, Moment(plan, state))
    for run in results["runs"]:
        run["status"] = "failed"
    assert "6 of 6 runs failed and are in no soup." in cautions(results)
    rows = list(csv.DictReader(io.StringIO(summary_csv(Moment(plan, state)))))
    assert [row["kind"] for row in rows].count("run") == 6
    assert [row["kind"] for row in rows].count("ema") == 6


def test_a_learning_curve_shows_the_ema_and_the_fold(folded: Finished, cohorts: Finished) -> None:
    plan, state, _ = folded
    figure = learning_curves(Moment(plan, state))
    assert isinstance(figure, Figure)
    assert "Dashed" in figure.caption and "Dotted" in figure.caption
    dashes = [line["line"]["dash"] for line in figure.data if "dash" in line.get("line", {})]
    assert dashes == ["solid", "dash", "dot"] * 6
    colors = [line["line"]["color"] for line in figure.data[:6]]
    assert len(set(colors[:3])) == 1 and len(set(colors)) == 2
    plain = learning_curves(Moment(*cohorts[:2]))
    assert (
        isinstance(plain, Figure)
        and "Dashed" not in plain.caption
        and "Dotted" not in plain.caption
    )
    names = {line["name"] for line in plain.data}
    assert {"final greedy of test_vit", "final greedy of test_resnet"} <= names


def test_a_run_has_columns_for_every_score_of_its_curve(
    folded: Finished, cohorts: Finished
) -> None:
    plan, state, _ = folded
    header = run_csv(state, plan.runs[0].id).splitlines()[0].split(",")
    assert {"val top1", "held out nll", "ema val ece"} <= set(header)
    header = run_csv(cohorts[1], cohorts[0].runs[0].id).splitlines()[0].split(",")
    assert "val top1" in header and not any("ema" in name or "held" in name for name in header)


def test_soups_have_the_names_of_their_cohorts(cohorts: Finished) -> None:
    plan, state, _ = cohorts
    table = text(final_table(collect_results(Moment(plan, state))))
    assert "soup greedy of test_vit" in table and "soup greedy of test_resnet" in table
    assert "model test_vit" in table
    assert "greedy of test_vit" in text(status_view(Moment(plan, state), "here"))
    page = report_html(collect_results(Moment(plan, state)), Moment(plan, state))
    assert "<b>uniform of test_resnet</b>" in page
    lines = [line(Moment(plan, state), event) or "" for event in cohorts[2].ledger().replay()]
    assert any(text.startswith("soup greedy of test_vit: val") for text in lines)
    assert any(text.startswith("greedy of test_vit starts with") for text in lines)


def test_the_status_notes_early_ends(folded: Finished) -> None:
    plan, state, _ = folded
    results = status_json(Moment(plan, state))
    early = [run for run in results["runs"] if run["note"] == "ended early"]
    assert (
        early
        and all(run["status"] == "done" for run in results["runs"])
        and len(results["runs"]) == 6
    )


def test_event_lines_show_folds_emas_and_patience(folded: Finished) -> None:
    plan, state, world = folded
    lines = [line(Moment(plan, state), event) or "" for event in world.ledger().replay()]
    assert any("folds of train hold out 107, 107, 106" in text for text in lines)
    assert any("EMA " in text and "held out" in text for text in lines)
    assert any(text.endswith("out of patience") for text in lines)
    trained = Trained(run="r", step=9, busy_s=1.0)
    assert line(Moment(plan, state), trained) == "run r is trained, step 9"


def test_candidates_of_a_trajectory_have_their_steps(tmp_path: Path) -> None:
    plan = simulated(1, epochs=3, soup={"ingredients": "all"})
    state = live(World.at(tmp_path, plan))
    page = report_html(collect_results(Moment(plan, state)), Moment(plan, state))
    assert all(f"{plan.runs[0].id} step {step}<" in page for step in (10, 20, 30))


def test_the_verdict_names_what_an_ensemble_was_fitted_on(cohorts: Finished) -> None:
    results: dict[str, Any] = collect_results(Moment(*cohorts[:2]))
    delta = {"test": {"metric": "top1", "delta": 0.0, "ci95": [-0.1, 0.1]}}
    for model in (*results["soups"], *results["ensembles"]):
        model["vs_best_single"] = delta
    sentences = about_ensembles(results)
    assert any(text.startswith("Stacking (fitted on val) of 4 models") for text in sentences)
