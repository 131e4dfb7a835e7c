"""Sync rounds in results.json and in the report."""

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.html.page import report_html
from orchestrator.report.html.sync_rounds import round_parts
from orchestrator.report.results import collect_results
from orchestrator.schedule.moment import Moment
from tests.simulator.experiment import program
from tests.simulator.simulator import live
from tests.simulator.world import World

Json = dict[str, Any]


def synced(folder: Path, **sections: Any) -> tuple[World, Json]:
    merge = {"mode": "sync", "method": "greedy"} | sections.pop("merge", {})
    world = World.at(folder, program(3, epochs=4, merge=merge, **sections))
    live(world)
    return world, collect_results(Moment(world.program, world.state()))


def test_every_round_says_who_took_part_and_what_came_of_it(tmp_path: Path) -> None:
    world, known = synced(tmp_path)
    assert [each["round"] for each in known["rounds"]] == [1, 2, 3]
    for each in known["rounds"]:
        score = world.state().scores[each["went_on_from"]]["val"]
        assert each["merged"] == {"top1": score.top1, "nll": score.nll}
        assert each["epoch"] == each["round"] and each["diversity"]["cosine"] == 0.5
        assert sum(member["merged"] for member in each["participants"]) >= 1
        assert all(member["scores"]["top1"] > 0 for member in each["participants"])


def test_a_segment_is_no_attempt_at_mending(tmp_path: Path) -> None:
    _, known = synced(tmp_path)
    assert [run["attempts"] for run in known["runs"]] == [1, 1, 1]


def test_the_figure_has_members_their_mean_and_the_merged_weights(tmp_path: Path) -> None:
    _, known = synced(tmp_path)
    figure, table = round_parts(known)
    members, mean, merged = figure.data
    assert len(members["y"]) == 9 and len(mean["y"]) == len(merged["y"]) == 3
    assert mean["y"][0] == pytest.approx(sum(members["y"][:3]) / 3)
    assert merged["y"] == [100 * each["merged"]["top1"] for each in known["rounds"]]
    assert [choice.label for choice in figure.choices] == ["accuracy", "loss", "diversity"]
    assert {len(choice.data) for choice in figure.choices} == {len(figure.data)}
    assert len(table.rows) == 3 and len(table.columns) == len(table.rows[0].cells) == 5


def test_circles_are_told_apart(tmp_path: Path) -> None:
    _, known = synced(tmp_path, data={"folds": 2}, sweep={"seeds": 2})
    figure, _ = round_parts(known)
    names = [trace["name"] for trace in figure.data]
    assert len(names) == len(set(names)) == 6 and any("fold 1" in name for name in names)


def test_places_of_figures_and_sections_do_not_collide(tmp_path: Path) -> None:
    world, known = synced(tmp_path)
    page = report_html(known, world.program, world.state())
    anchors = re.findall(r'<(?:section|div)[^>]* id="([^"]+)"', page.partition("<script>")[0])
    assert len(anchors) == len(set(anchors)) and "merged-and-members" in anchors


def test_without_sync_there_is_nothing_to_show(tmp_path: Path) -> None:
    _, known = synced(tmp_path, merge={"mode": "observe"})
    assert known["rounds"] and round_parts(known) == ()
