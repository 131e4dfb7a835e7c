import io
import json

import pytest
from rich.console import Console, RenderableType

from orchestrator.report.terminal.tables import MAX_RUNS, final_table, status_json, status_view
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.report.scenario import RECIPES, Scenario
from tests.simulator.experiment import simulated


def _text(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=180)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_final_table_shows_every_model_and_what_is_served(finished: Scenario) -> None:
    text = _text(final_table(finished.results()))
    assert all(run.id in text for run in finished.expanded.runs)
    served = next(line for line in text.splitlines() if "soup greedy" in line)
    assert "served" in served and "79.83" in served and "+5.50 [+2.83, +8.17]" in served
    assert "ensemble soft voting" in text and "ood:sketch" in text
    assert "failed: diverged: the loss is not finite" in text
    assert "report.html" in text and "results.json" in text


def test_paths_of_a_remote_store_keep_their_query(finished: Scenario) -> None:
    uri = "s3://bucket/story?scheme=http"
    text = _text(final_table(finished.results(), uri))
    assert "s3://bucket/story/report.html?scheme=http" in text


@pytest.mark.parametrize("nth", [1, 3, 5, 8])
def test_the_status_renders_at_every_moment(finished: Scenario, nth: int) -> None:
    scenario = finished.until("checkpoint", nth)
    text = _text(status_view(scenario.moment, "here"))
    assert "simulated: running" in text and "Soup so far" in text
    content = status_json(scenario.moment)
    assert content["state"] == "running" and content["events"] == len(scenario.events)
    json.dumps(content, allow_nan=False)


def test_the_status_names_what_orders_wait_for(finished: Scenario) -> None:
    scenario = finished.until("started", 3)
    waits = status_json(scenario.moment)["waits"]
    assert any("one of 2 slots" in sentence and "train" in sentence for sentence in waits)
    (before,) = status_json(Moment(scenario.expanded, State()))["waits"]
    assert before.startswith("5 runs") and "preflight" in before


def test_a_finished_experiment_waits_for_nothing(finished: Scenario) -> None:
    content = status_json(finished.moment)
    assert content["state"] == "finished" and content["waits"] == []
    assert [run["status"] for run in content["runs"]] == ["done", "done", "done", "failed", "done"]
    assert len(content["soups"]) == len(RECIPES)


def test_a_large_fleet_is_cut_to_what_fits() -> None:
    text = _text(status_view(Moment(simulated(60), State()), "here"))
    assert f"and {60 - MAX_RUNS} more" in text
