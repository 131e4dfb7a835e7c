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
from tests.orchestrator.report.synthetic_analysis import Tale
from tests.orchestrator.report.synthetic_results import Story, program
from workers.storage.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run --enable-logging=stderr "
    "--virtual-time-budget=20000"
)

ALWAYS = ["learning-curves", "timeline"]
EVERY = [
    *("differences", "robustness", "map", "paths", "coefficients", "cosines", "barrier"),
    *("reliability", "bias-variance", "confusion", *ALWAYS),
]


def _page(told: Story) -> str:
    return report_html(collect_results(Moment(told.program, told.state)), told.program, told.state)


def test_the_page_is_one_file_that_asks_nothing_of_the_network(told: Story) -> None:
    page = _page(told)
    assert page.count("<title>") == 1
    assert not re.search(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page, "the browser itself refuses any request"


def test_every_candidate_is_there_with_its_reason(told: Story) -> None:
    page = _page(told)
    known = collect_results(Moment(told.program, told.state))
    reasons = [each["reason"] for soup in known["soups"] for each in soup["decisions"]]
    assert reasons and all(reason in page for reason in reasons)
    assert "refused" in page and "accepted" in page


def test_fingerprints_failures_and_the_way_to_load_are_there(told: Story) -> None:
    page = _page(told)
    assert all(split.fingerprint in page for split in told.state.preflight.splits.values())  # type: ignore[union-attr]
    assert "diverged: the loss is not finite at step 17" in page
    assert "timm.create_model(" in page and "local-dir:" in page


def test_names_are_escaped(told: Story) -> None:
    known = collect_results(Moment(told.program, told.state)) | {
        "name": "<img src=x onerror=alert(1)>"
    }
    known["runs"][0]["params"] = {"train.aa": "</script><b>"}
    page = report_html(known, told.program, told.state)
    assert "<img src=x" not in page and "</script><b>" not in page


def test_a_page_can_be_made_of_nothing(tmp_path: Path) -> None:
    made = program(tmp_path)
    assert "No soup is served" in report_html(collect_results(made, State()), made, State())


def test_the_report_is_written_into_the_store(told: Story, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "story"))
    write_report(Moment(told.program, told.state), store)
    run = told.program.runs[0].id
    written = {"results.json", "summary.csv", "report.html", f"runs/{run}/summary.csv"}
    assert written <= set(store.list(""))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_every_figure_without_a_complaint(
    told: Story, tale: Tale, tmp_path: Path
) -> None:
    page = report_html(tale.known, told.program, told.state, tale.analysis)
    assert [figure["id"] for figure in _figures(page)] == EVERY
    file = tmp_path / "report.html"
    file.write_text(page)
    command = [str(CHROMIUM), *QUIET.split(), f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    for figure in EVERY:
        drawn = re.search(rf'<div id="{figure}" class="plot js-plotly-plot".*?<svg', done.stdout)
        assert drawn is not None, f"{figure} was not drawn"
    assert done.stdout.count('class="point"') > 100
    assert "--" not in "".join(re.findall(r'(?:fill|stroke): ([^;"]*)', done.stdout)), "no colour"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []


def test_every_part_has_an_anchor_of_its_own(told: Story, tale: Tale) -> None:
    page = report_html(tale.known, told.program, told.state, tale.analysis)
    anchors = re.findall(
        r'<(?:section|div|script)[^>]* id="([^"]+)"', page.partition("<script>")[0]
    )
    assert len(anchors) == len(set(anchors)) and set(EVERY) <= set(anchors)
    assert all(f'id="{to}"' in page for to in re.findall(r'<a href="#([^"]+)"', page))


def test_without_an_analysis_what_needs_it_is_left_out_with_the_reason(told: Story) -> None:
    page = _page(told)
    drawn = {figure["id"] for figure in _figures(page)}
    assert drawn == {"differences", "robustness", "paths", "coefficients", *ALWAYS}
    assert page.count("because there is no analysis.json yet") == 5


def test_colours_are_those_of_the_style_sheet(told: Story, tale: Tale) -> None:
    page = report_html(tale.known, told.program, told.state, tale.analysis)
    style, _, rest = page.partition("</style>")
    used = set(
        re.findall(r'"(--[a-z]+)"', rest.partition('id="figures">')[2].partition("</script>")[0])
    )
    assert {"--soup", "--single", "--ingredient", "--ensemble"} <= used
    assert all(style.count(f"{name}:") == 2 for name in used), "once for light, once for dark"


def _figures(page: str) -> list[Any]:
    found: list[Any] = json.loads(page.partition('id="figures">')[2].partition("</script>")[0])
    return found
