import io
import json
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from orchestrator.report.results import collect_results
from orchestrator.report.terminal.tables import MAX_RUNS, final_table, status_json, status_view
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.report.synthetic_results import Story, program


def _text(shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=180)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_final_table_shows_every_model_and_what_is_served(told: Story) -> None:
    text = _text(final_table(collect_results(Moment(told.program, told.state))))
    assert all(run.id in text for run in told.program.runs)
    served = next(line for line in text.splitlines() if "soup greedy" in line)
    assert "served" in served and "93.33" in served and "+1.00 [+0.15, +1.85]" in served
    assert "ensemble soft voting" in text and "ood:sketch" in text
    assert "failed: diverged: the loss is not finite" in text
    assert "report.html" in text and "results.json" in text


def test_paths_of_a_remote_store_keep_their_query(told: Story) -> None:
    uri = "s3://bucket/story?scheme=http"
    text = _text(final_table(collect_results(Moment(told.program, told.state)), uri))
    assert "s3://bucket/story/report.html?scheme=http" in text


@pytest.mark.parametrize("nth", [1, 3, 5, 8])
def test_the_status_can_be_told_at_any_moment(tmp_path: Path, nth: int) -> None:
    story = Story(program(tmp_path)).tell("checkpoint", nth)
    text = _text(status_view(Moment(story.program, story.state), "here"))
    assert "story: running" in text and "Soup so far" in text
    known = status_json(Moment(story.program, story.state))
    assert known["state"] == "running" and known["events"] == len(story.events)
    json.dumps(known, allow_nan=False)


def test_what_waits_says_for_what(tmp_path: Path) -> None:
    story = Story(program(tmp_path)).tell("started", 3)
    known = status_json(Moment(story.program, story.state))
    assert any("one of 2 slots" in sentence and "train" in sentence for sentence in known["waits"])
    assert status_json(Moment(story.program, State()))["waits"] == [
        "5 runs wait for preflight, which looks at the data."
    ]


def test_a_finished_experiment_says_so(told: Story) -> None:
    known = status_json(Moment(told.program, told.state))
    assert known["state"] == "finished" and known["waits"] == []
    assert [run["status"] for run in known["runs"]] == ["done", "done", "done", "failed", "done"]
    assert [soup["label"] for soup in known["soups"]] == ["best", "uniform", "greedy"]


def test_a_large_fleet_is_cut_to_what_fits(tmp_path: Path) -> None:
    many = """
name: many
data: {source: digits}
model: {name: test_resnet}
sweep: {seeds: 60}
"""
    made = program(tmp_path, many)
    text = _text(status_view(made, State(), "here"))
    assert f"and {60 - MAX_RUNS} more" in text
