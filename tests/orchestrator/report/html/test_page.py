import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.html.page import report_html
from orchestrator.report.results import collect_results
from orchestrator.report.write import write_report
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.report.scenario import DIVERGED, Scenario
from tests.simulator.experiment import simulated
from workers.storage.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run --enable-logging=stderr "
    "--virtual-time-budget=20000"
)

WITHOUT_ANALYSIS = [
    *("differences", "robustness", "paths", "coefficients", "learning-curves", "timeline")
]
FIGURES = [
    *("differences", "robustness", "map", "paths", "coefficients", "cosines", "barrier"),
    *("reliability", "bias-variance", "confusion", "learning-curves", "timeline"),
]


@pytest.fixture(scope="module")
def page(finished: Scenario) -> str:
    return report_html(finished.results(), finished.moment, finished.analysis)


def test_the_page_is_one_file_that_needs_no_network(page: str) -> None:
    assert page.count("<title>") == 1
    assert not re.search(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page, "the browser itself refuses any request"


def test_every_candidate_is_there_with_its_reason(finished: Scenario, page: str) -> None:
    soups = finished.results()["soups"]
    reasons = [decision["reason"] for soup in soups for decision in soup["decisions"]]
    assert reasons and all(reason in page for reason in reasons)
    assert "refused" in page and "accepted" in page


def test_fingerprints_failures_and_the_code_to_load_are_there(
    finished: Scenario, page: str
) -> None:
    assert all(split["fingerprint"] in page for split in finished.results()["splits"].values())
    assert f"diverged: {DIVERGED}" in page
    assert "timm.create_model(" in page and "local-dir:" in page


def test_names_are_escaped(finished: Scenario) -> None:
    results = finished.results() | {"name": "<img src=x onerror=alert(1)>"}
    results["runs"][0]["params"] = {"train.aa": "</script><b>"}
    page = report_html(results, finished.moment)
    assert "<img src=x" not in page and "</script><b>" not in page


def test_a_page_renders_before_the_first_event() -> None:
    moment = Moment(simulated(), State())
    page = report_html(collect_results(moment), moment)
    assert "No soup is served" in page


def test_the_report_is_written_into_the_store(finished: Scenario, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    write_report(finished.moment, store)
    run = finished.expanded.runs[0].id
    written = {"results.json", "summary.csv", "report.html", f"runs/{run}/summary.csv"}
    assert written <= set(store.list(""))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_every_figure_without_an_error(page: str, tmp_path: Path) -> None:
    assert [figure["id"] for figure in _figures(page)] == FIGURES
    file = tmp_path / "report.html"
    file.write_text(page)
    command = [str(CHROMIUM), *OPTIONS.split(), f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    browser = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    dom = browser.stdout
    for figure in FIGURES:
        drawn = re.search(rf'<div id="{figure}" class="plot js-plotly-plot".*?<svg', dom)
        assert drawn is not None, f"{figure} was not drawn"
    assert dom.count('class="point"') > 100
    assert "--" not in "".join(re.findall(r'(?:fill|stroke): ([^;"]*)', dom)), "no colour"
    assert [line for line in browser.stderr.splitlines() if "CONSOLE" in line] == []


def test_every_part_has_an_anchor_of_its_own(page: str) -> None:
    anchors = re.findall(
        r'<(?:section|div|script)[^>]* id="([^"]+)"', page.partition("<script>")[0]
    )
    assert len(anchors) == len(set(anchors)) and set(FIGURES) <= set(anchors)
    assert all(f'id="{to}"' in page for to in re.findall(r'<a href="#([^"]+)"', page))


def test_figures_that_need_an_analysis_are_left_out_with_the_reason(finished: Scenario) -> None:
    page = report_html(finished.results(), finished.moment)
    assert {figure["id"] for figure in _figures(page)} == set(WITHOUT_ANALYSIS)
    assert page.count("because there is no analysis.json yet") == 5


def test_colours_are_those_of_the_style_sheet(page: str) -> None:
    style = page.partition("</style>")[0]
    used = set(re.findall(r'"(--[a-z]+)"', json.dumps(_figures(page))))
    assert {"--soup", "--single", "--ingredient", "--ensemble"} <= used
    assert all(style.count(f"{name}:") == 2 for name in used), "once for light, once for dark"


def _figures(page: str) -> list[Any]:
    figures: list[Any] = json.loads(page.partition('id="figures">')[2].partition("</script>")[0])
    return figures
