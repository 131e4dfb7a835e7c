import json
from dataclasses import replace
from pathlib import Path

from orchestrator.report.efficiency import fleet_efficiency
from orchestrator.report.results import collect_results
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.report.synthetic_results import CONFIG, Story, program
from workers.types import Started


def test_results_have_every_key_of_the_contract(told: Story) -> None:
    known = collect_results(Moment(told.program, told.state))
    promised = (
        "schema name cohorts splits runs soups ensembles best_single served wall_s fleet_efficiency"
    )
    assert set(promised.split()) <= set(known)
    run = "id cohort params seed status attempts checkpoints scores"
    soup = "id recipe cohort mix members scores tastes samples_forwarded seconds batchnorm"
    assert all(set(run.split()) <= set(each) for each in known["runs"])
    assert all({*soup.split(), "vs_best_single"} <= set(each) for each in known["soups"])
    assert set(known["splits"]["test"]) == {"count", "fingerprint"}
    json.dumps(known, allow_nan=False)


def test_the_served_soup_is_told_in_full(told: Story) -> None:
    known = collect_results(Moment(told.program, told.state))
    soup = next(each for each in known["soups"] if each["id"] == known["served"])
    checkpoints = [id for run in known["runs"] for id in run["checkpoints"]]
    assert soup["recipe"] == "greedy"
    assert soup["members"] == [id for id, _ in soup["mix"]["weights"]]
    assert set(soup["members"]) <= set(checkpoints), "members are found in the store by their ids"
    assert [each["accepted"] for each in soup["decisions"]] == [True, True, True, False]
    assert soup["tastes"] == 3 and soup["samples_forwarded"] >= 3 * 400
    assert soup["seconds"] > 0.4
    low, high = soup["vs_best_single"]["test"]["ci95"]
    assert low < soup["vs_best_single"]["test"]["delta"] < high


def test_best_is_a_soup_with_the_scores_of_the_best_single_run(told: Story) -> None:
    known = collect_results(Moment(told.program, told.state))
    best = next(each for each in known["soups"] if each["recipe"] == "best")
    assert best["scores"] == known["best_single"]["scores"]
    assert best["members"] == [known["best_single"]["checkpoint"]]
    assert best["vs_best_single"]["test"]["delta"] == 0


def test_a_failed_run_and_a_mended_one_are_both_said(told: Story) -> None:
    known = collect_results(Moment(told.program, told.state))
    run = known["runs"][3]
    assert run["status"] == "failed" and "not finite" in run["failure"] and run["scores"] == {}
    outcome = {each["run"]: each["gave_up"] for each in known["failures"]}
    assert outcome[run["id"]] is not None
    assert outcome[known["runs"][1]["id"]] is None and known["runs"][1]["attempts"] == 2


def test_rounds_are_told_oldest_first(told: Story) -> None:
    rounds = collect_results(Moment(told.program, told.state))["rounds"]
    assert [each["round"] for each in rounds] == sorted(each["round"] for each in rounds)
    assert all(each["members"] and each["score"] for each in rounds)


def test_results_render_before_anything_has_happened(tmp_path: Path) -> None:
    known = collect_results(program(tmp_path), State())
    assert known["served"] is None and known["best_single"] is None
    assert {run["status"] for run in known["runs"]} == {"stopped"}


def test_results_render_at_every_moment(tmp_path: Path) -> None:
    for nth in (1, 4, 9):
        story = Story(program(tmp_path)).tell("checkpoint", nth)
        json.dumps(collect_results(Moment(story.program, story.state)), allow_nan=False)


def test_a_negative_log_likelihood_that_is_no_number_becomes_null(told: Story) -> None:
    name = next(iter(told.state.scores))
    broken = {
        split: score.model_copy(update={"nll": float("nan")})
        for split, score in told.state.scores[name].items()
    }
    state = replace(told.state, scores={**told.state.scores, name: broken})
    assert "NaN" not in json.dumps(collect_results(Moment(told.program, state)))


def test_a_slot_that_stands_free_while_its_next_order_is_due_is_wasted() -> None:
    first = Started(order="a", attempt=1, slot="slot-0", time=10.0, warm=False, gap_s=None)
    second = first.model_copy(update={"order": "b", "time": 24.0})
    state = State(
        began_at=0.0,
        last_at=30.0,
        starts=(first, second),
        busy=(("slot-0", 10.0, 20.0), ("slot-0", 24.0, 30.0), ("merge", 0.0, 30.0)),
        due_since={("a", 1): 10.0, ("b", 1): 21.0},
    )
    used = fleet_efficiency(state)
    assert (used.busy_s, used.wanted_s) == (16.0, 19.0), "free from 20, but due only since 21"
    assert used.whole_wall == 16 / 30


def test_waiting_for_a_busy_slot_is_no_waste() -> None:
    first = Started(order="a", attempt=1, slot="slot-0", time=0.0, warm=False, gap_s=None)
    second = first.model_copy(update={"order": "b", "time": 20.0})
    state = State(
        starts=(first, second),
        busy=(("slot-0", 0.0, 20.0), ("slot-0", 20.0, 30.0)),
        due_since={("a", 1): 0.0, ("b", 1): 0.0},
    )
    assert fleet_efficiency(state).value == 1.0


def test_when_every_run_fails_nothing_is_served_and_the_reasons_are_there(tmp_path: Path) -> None:
    only_the_bad_one = CONFIG.split("  runs:")[0] + "  runs: [{train: {lr: 0.05}}]\n"
    made = program(tmp_path, only_the_bad_one)
    story = Story(made, diverging=0).tell()
    known = collect_results(made, story.state)
    assert known["served"] is None and known["soups"] == []
    assert known["runs"][0]["failure"] and known["failures"][0]["gave_up"]
