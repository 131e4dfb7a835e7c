import csv
import io

from orchestrator.report.csv_files import run_csv, summary_csv
from tests.orchestrator.report.scenario import RECIPES, Scenario


def test_the_summary_has_a_row_per_model_and_columns_per_split(finished: Scenario) -> None:
    table = list(csv.DictReader(io.StringIO(summary_csv(finished.moment))))
    kinds = ["run"] * 5 + ["soup"] * len(RECIPES) + ["ensemble"]
    assert [row["kind"] for row in table] == kinds
    (served,) = [row for row in table if row["served"]]
    results = finished.results()
    (soup,) = [soup for soup in results["soups"] if soup["id"] == results["served"]]
    assert served["label"] == "greedy"
    assert float(served["test top1"]) == soup["scores"]["test"]["top1"]
    assert float(served["test ci95_low"]) < float(served["test delta"])
    assert table[3]["status"] == "failed" and table[3]["test top1"] == ""


def test_later_columns_of_the_summary_are_at_the_end(finished: Scenario) -> None:
    text = summary_csv(finished.moment, None, finished.analysis)
    header = text.splitlines()[0].split(",")
    start = header.index("tastes")
    assert "worst_class" not in " ".join(header[:start])
    assert header[start : start + 4] == ["tastes", "seconds", "batchnorm", "val worst_class"]
    assert header[-1] == "ood:sketch ece_scaled"


def test_a_run_has_a_row_per_epoch(finished: Scenario) -> None:
    run = finished.expanded.runs[1].id
    table = list(csv.DictReader(io.StringIO(run_csv(finished.state, run))))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert float(table[-1]["val top1"]) == finished.state.run(run).curve[30].score.top1
