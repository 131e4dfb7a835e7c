"""The files of the report: results.json, summary.csv, report.html, a CSV per run."""

import json

from orchestrator.report.csv_files import run_csv, summary_csv
from orchestrator.report.html.page import report_html
from orchestrator.report.results import Json, collect_results
from orchestrator.schedule.moment import Moment
from workers.storage.layout import ANALYSIS, REPORT, RESULTS, SUMMARY, run_file
from workers.storage.store import Store


def write_report(moment: Moment, store: Store) -> Json:
    """Returns the results. results.json is written last, so that it proves the other files."""
    for path, data in report_files(moment, store).items():
        store.write(path, data)
    return collect_results(moment)


def report_files(moment: Moment, store: Store) -> dict[str, bytes]:
    """Content of all files of the report by path, results.json last; a function of the ledger and
    of analysis.json."""
    results, analysis = collect_results(moment), _analysis(store)
    files = {
        run_file(run.id, SUMMARY): run_csv(moment.state, run.id)
        for run in moment.expanded.runs
        if moment.state.run(run.id).curve
    }
    files[SUMMARY] = summary_csv(moment, results, analysis)
    files[REPORT] = report_html(results, moment, analysis)
    files[RESULTS] = json.dumps(results, indent=1, allow_nan=False)
    return {path: text.encode() for path, text in files.items()}


def changed_report_files(moment: Moment, store: Store) -> dict[str, bytes]:
    """Those of `report_files` that are missing in the store or have other bytes there."""
    files = report_files(moment, store)
    return {path: data for path, data in files.items() if _content(store, path) != data}


def _content(store: Store, path: str) -> bytes | None:
    try:
        return store.read(path)
    except FileNotFoundError:
        return None


def _analysis(store: Store) -> Json | None:
    """Content of analysis.json. None: there is none that can be read."""
    try:
        analysis = json.loads(store.read(ANALYSIS))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return analysis if isinstance(analysis, dict) else None
