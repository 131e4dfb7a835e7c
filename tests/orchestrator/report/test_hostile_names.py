"""Names from data in the report: no control character, no markup, no formula leaves it raw."""

import csv
import io
from typing import Any

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.report.csv_files import summary_csv
from orchestrator.report.html.page import report_html
from orchestrator.report.terminal.console import SafeConsole
from orchestrator.report.terminal.live import PlainView
from orchestrator.report.terminal.tables import final_table
from tests.orchestrator.report.scenario import Scenario

HOSTILE = "\x1b[31mred\u202egnp\x07 <script>alert(1)</script>"
RAW = ("\x1b[31mred", "\u202e", "\x07")
VISIBLE = r"\x1b[31mred\u202egnp"


@pytest.fixture
def results(finished: Scenario) -> dict[str, Any]:
    """Results with a hostile class, key and failure."""
    results = finished.results()
    classes = (HOSTILE, *results["classes"][1:])
    failures = [{**failure, "message": HOSTILE} for failure in results["failures"]]
    return {**results, "classes": classes, "corrupt": [HOSTILE], "failures": failures}


def _printed(*renderables: Any, **settings: Any) -> str:
    sink = io.StringIO()
    console = SafeConsole(file=sink, width=100, **settings)
    for renderable in renderables:
        console.print(renderable)
    return sink.getvalue()


def test_the_page_shows_names_as_visible_text(finished: Scenario, results: dict[str, Any]) -> None:
    assert finished.analysis is not None
    analysis = {**finished.analysis, "classes": results["classes"]}
    page = report_html(results, finished.moment, analysis)
    assert not any(raw in page for raw in RAW)
    assert VISIBLE in page and "<script>alert" not in page
    # JSON escapes the backslash of a visible escape, so no script reads the character itself.
    assert r"\u202egnp" not in page.replace(r"\\u202egnp", "").replace(VISIBLE, "")


def test_the_table_at_the_end_cannot_steer_the_terminal(
    finished: Scenario, results: dict[str, Any]
) -> None:
    text = _printed(final_table({**results, "name": HOSTILE}), Text(HOSTILE), HOSTILE)
    assert VISIBLE in text and not any(raw in text for raw in RAW)


def test_styles_of_ours_pass_and_cells_keep_their_width() -> None:
    table = Table()
    table.add_column("name", width=12)
    table.add_row(Text("a\x1b[2Jb" * 5), style="bold red")
    text = _printed(table, force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;31m" in text and "\x1b[2J" not in text
    lines = [line for line in _printed(table).splitlines() if line]
    assert len({len(line) for line in lines}) == 1


def test_a_live_table_cannot_steer_the_terminal() -> None:
    sink = io.StringIO()
    console = SafeConsole(file=sink, width=60, force_terminal=True)
    with Live(Text(HOSTILE), console=console, auto_refresh=False) as live:
        live.update(Text(HOSTILE * 2), refresh=True)
    assert not any(raw in sink.getvalue() for raw in RAW)


def test_a_line_of_an_event_stays_one_line() -> None:
    sink = io.StringIO()
    PlainView(SafeConsole(file=sink, width=60))._print(0, "failed: a\nfinished: all is well")
    assert len(sink.getvalue().splitlines()) == 1


def test_labels_that_are_formulas_are_text_in_the_summary(finished: Scenario) -> None:
    results = finished.results()
    results["soups"][0]["recipe"] = "=HYPERLINK(A1)"
    table = list(csv.DictReader(io.StringIO(summary_csv(finished.moment, results))))
    assert "'=HYPERLINK(A1)" in [row["label"] for row in table]
    assert not [cell for row in table for cell in row.values() if cell.startswith("=")]
