import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.efficiency import fleet_efficiency
from orchestrator.report.results import collect_results
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.orchestrator.report.scenario import Scenario
from tests.simulator.experiment import simulated
from tests.simulator.simulator import live
from tests.simulator.world import Mishap, World
from workers.types import AnyEvent, AnyOrder, Opened, Ordered, Served, Started, TrainOrder


def test_results_have_every_key_of_the_contract(finished: Scenario) -> None:
    results = finished.results()
    promised = (
        "schema name cohorts splits runs soups ensembles best_single served wall_s fleet_efficiency"
    )
    assert set(promised.split()) <= set(results)
    run = "id cohort params seed status attempts checkpoints scores"
    soup = "id recipe cohort mix members scores tastes samples_forwarded seconds batchnorm"
    assert all(set(run.split()) <= set(each) for each in results["runs"])
    assert all({*soup.split(), "vs_best_single"} <= set(each) for each in results["soups"])
    assert set(results["splits"]["test"]) == {"count", "fingerprint"}
    json.dumps(results, allow_nan=False)


def test_the_served_soup_is_complete(finished: Scenario) -> None:
    results = finished.results()
    soup = next(soup for soup in results["soups"] if soup["id"] == results["served"])
    checkpoints = [id for run in results["runs"] for id in run["checkpoints"]]
    assert soup["recipe"] == "greedy"
    assert soup["members"] == [id for id, _ in soup["mix"]["weights"]]
    assert set(soup["members"]) <= set(checkpoints), "members are found in the store by their ids"
    assert [each["accepted"] for each in soup["decisions"]] == [True, True, True, False]
    assert soup["tastes"] == 3 and soup["samples_forwarded"] >= 2 * 400
    assert soup["seconds"] > 0.4
    low, high = soup["vs_best_single"]["test"]["ci95"]
    assert low < soup["vs_best_single"]["test"]["delta"] < high


def test_best_is_a_soup_with_the_scores_of_the_best_single_run(finished: Scenario) -> None:
    results = finished.results()
    best = next(soup for soup in results["soups"] if soup["recipe"] == "best")
    assert best["scores"] == results["best_single"]["scores"]
    assert best["members"] == [results["best_single"]["checkpoint"]]
    assert best["vs_best_single"]["test"]["delta"] == 0


def test_a_failed_run_and_a_repeated_one_are_both_listed(finished: Scenario) -> None:
    results = finished.results()
    run = results["runs"][3]
    assert run["status"] == "failed" and "not finite" in run["failure"] and run["scores"] == {}
    outcome = {each["run"]: each["gave_up"] for each in results["failures"]}
    assert outcome[run["id"]] is not None
    assert outcome[results["runs"][1]["id"]] is None and results["runs"][1]["attempts"] == 2


def test_rounds_are_listed_oldest_first(finished: Scenario) -> None:
    rounds = finished.results()["rounds"]
    assert [each["round"] for each in rounds] == sorted(each["round"] for each in rounds)
    assert all(each["members"] and each["score"] for each in rounds)


def test_results_render_before_the_first_event() -> None:
    results = collect_results(Moment(simulated(), State()))
    assert results["served"] is None and results["best_single"] is None
    assert {run["status"] for run in results["runs"]} == {"stopped"}


@pytest.mark.parametrize("nth", [1, 4, 9])
def test_results_render_at_every_moment(finished: Scenario, nth: int) -> None:
    json.dumps(finished.until("checkpoint", nth).results(), allow_nan=False)


def test_a_negative_log_likelihood_that_is_no_number_becomes_null(finished: Scenario) -> None:
    state = finished.state
    name = next(iter(state.scores))
    broken = {
        split: score.model_copy(update={"nll": float("nan")})
        for split, score in state.scores[name].items()
    }
    state = replace(state, scores={**state.scores, name: broken})
    assert "NaN" not in json.dumps(collect_results(Moment(finished.expanded, state)))


def worked(order: str, slot: str, due: float, start: float, end: float) -> list[AnyEvent]:
    """An order of some slot, from being due to its end."""
    who: dict[str, Any] = {"order": order, "attempt": 1, "slot": slot}
    return [
        Ordered(order=order, attempt=1, what="serve", due_since=due, time=due),
        Started(**who, time=start, warm=False, gap_s=None),
        Served(**who, time=end, soup=None),
    ]


def test_a_slot_that_is_free_while_its_next_order_is_due_is_wasted() -> None:
    state = fold(
        [
            Opened(driver="h:1", fleet="simulated", slots=1, time=0.0),
            *worked("m", "merge", 0.0, 0.0, 9.0),
            *worked("a", "slot-0", 10.0, 10.0, 20.0),
            *worked("b", "slot-0", 21.0, 24.0, 30.0),
        ]
    )
    used = fleet_efficiency(state)
    assert (used.busy_s, used.wanted_s) == (16.0, 19.0), "free from 20, but due only since 21"
    assert used.whole_wall == 16 / 30


def test_waiting_for_a_busy_slot_is_no_waste() -> None:
    first, second = (
        worked("a", "slot-0", 0.0, 0.0, 20.0),
        worked("b", "slot-0", 0.0, 20.0, 30.0),
    )
    assert fleet_efficiency(fold([*first, *second])).value == 1.0


def test_when_every_run_fails_nothing_is_served_and_the_reasons_are_there(tmp_path: Path) -> None:
    def mishap(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("diverged", after=1) if isinstance(order, TrainOrder) else None

    world = World.at(tmp_path, simulated(1), mishaps=mishap)
    results = collect_results(Moment(world.expanded, live(world)))
    assert results["served"] is None and results["soups"] == []
    assert results["runs"][0]["failure"] and results["failures"][0]["gave_up"]
