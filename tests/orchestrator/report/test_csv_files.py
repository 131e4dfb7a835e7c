import csv
import io

from orchestrator.report.csv_files import run_csv, summary_csv
from orchestrator.schedule.moment import Moment
from tests.orchestrator.report.synthetic_results import Story


def test_the_summary_has_a_row_per_model_and_columns_per_split(told: Story) -> None:
    table = list(csv.DictReader(io.StringIO(summary_csv(Moment(told.program, told.state)))))
    assert [row["kind"] for row in table] == ["run"] * 5 + ["soup"] * 3 + ["ensemble"]
    served = next(row for row in table if row["served"])
    assert served["label"] == "greedy" and float(served["test top1"]) == 560 / 600
    assert float(served["test ci95_low"]) < float(served["test delta"])
    assert table[3]["status"] == "failed" and table[3]["test top1"] == ""


def test_a_run_has_a_row_per_epoch(told: Story) -> None:
    table = list(csv.DictReader(io.StringIO(run_csv(told.state, told.program.runs[1].id))))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert table[-1]["val top1"] == "0.93"
