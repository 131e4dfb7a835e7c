"""Writing the report into the store: results.json, summary.csv, report.html, a CSV per run."""

import json

from orchestrator.report.csv_files import run_csv, summary_csv
from orchestrator.report.html.page import report_html
from orchestrator.report.results import Json, collect_results
from orchestrator.schedule.moment import Moment
from workers.storage.layout import ANALYSIS, REPORT, RESULTS, SUMMARY, run_file
from workers.storage.store import Store


def write_report(moment: Moment, store: Store) -> Json:
    """Returns the results. results.json is written last, so that it proves the other files."""
    results = collect_results(moment)
    analysis = json.loads(store.read(ANALYSIS)) if store.exists(ANALYSIS) else None
    for run in moment.expanded.runs:
        if moment.state.run(run.id).curve:
            store.write(run_file(run.id, SUMMARY), run_csv(moment.state, run.id).encode())
    store.write(SUMMARY, summary_csv(moment, results, analysis).encode())
    store.write(REPORT, report_html(results, moment, analysis).encode())
    store.write(RESULTS, json.dumps(results, indent=1, allow_nan=False).encode())
    return results
