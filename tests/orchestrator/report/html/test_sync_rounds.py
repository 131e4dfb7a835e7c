"""Sync rounds in results.json and in the report."""

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.html.page import report_html
from orchestrator.report.html.sync_rounds import round_parts
from orchestrator.report.results import collect_results
from orchestrator.schedule.moment import Moment
from tests.orchestrator.report.scenario import Json
from tests.simulator.experiment import simulated
from tests.simulator.simulator import live
from tests.simulator.world import World


def carry_out(folder: Path, **sections: Any) -> tuple[World, Json]:
    merge = {"mode": "sync", "method": "greedy"} | sections.pop("merge", {})
    world = World.at(folder, simulated(3, epochs=4, merge=merge, **sections))
    live(world)
    return world, collect_results(Moment(world.expanded, world.state()))


def test_every_round_has_its_participants_and_its_outcome(tmp_path: Path) -> None:
    world, results = carry_out(tmp_path)
    assert [one["round"] for one in results["rounds"]] == [1, 2, 3]
    for one in results["rounds"]:
        score = world.state().scores[one["went_on_from"]]["val"]
        assert one["merged"] == {"top1": score.top1, "nll": score.nll}
        assert one["epoch"] == one["round"] and one["diversity"]["cosine"] == 0.5
        assert sum(member["merged"] for member in one["participants"]) >= 1
        assert all(member["scores"]["top1"] > 0 for member in one["participants"])


def test_a_segment_is_not_counted_as_another_attempt(tmp_path: Path) -> None:
    _, results = carry_out(tmp_path)
    assert [run["attempts"] for run in results["runs"]] == [1, 1, 1]


def test_the_figure_has_members_their_mean_and_the_merged_weights(tmp_path: Path) -> None:
    world, results = carry_out(tmp_path)
    figure, table = round_parts(results)
    members, mean, merged = figure.data
    assert len(members["y"]) == 9 and len(mean["y"]) == len(merged["y"]) == 3
    assert mean["y"][0] == pytest.approx(sum(members["y"][:3]) / 3)
    assert merged["y"] == [100 * one["merged"]["top1"] for one in results["rounds"]]
    assert [choice.label for choice in figure.choices] == ["accuracy", "loss", "diversity"]
    assert {len(choice.data) for choice in figure.choices} == {len(figure.data)}
    assert {len(row.cells) for row in table.rows} == {len(table.columns)} == {5}
    page = report_html(results, Moment(world.expanded, world.state()))
    anchors = re.findall(r'<(?:section|div)[^>]* id="([^"]+)"', page.partition("<script>")[0])
    assert len(anchors) == len(set(anchors)) and "merged-and-members" in anchors


def test_groups_have_names_of_their_own(tmp_path: Path) -> None:
    _, results = carry_out(tmp_path, data={"folds": 2}, sweep={"seeds": 2})
    figure, table = round_parts(results)
    names = [trace["name"] for trace in figure.data]
    assert len(names) == len(set(names)) == 6 and any("fold 1" in name for name in names)
    assert table.columns[1].title == "of"


def test_nothing_is_shown_without_sync_rounds(tmp_path: Path) -> None:
    _, results = carry_out(tmp_path, merge={"mode": "observe"})
    assert results["rounds"] and round_parts(results) == ()
