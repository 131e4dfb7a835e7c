"""Curves: what a recipe passed on its way is scored when all is chosen, and never twice."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import config, schedule
from orchestrator.commands import run
from orchestrator.commands.run import Options
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.report.results import collect_results
from orchestrator.schedule import final_merges, path_scores
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.orchestrator.small_fleet import replayed, run_small, small_experiment
from tests.simulator.experiment import simulated
from tests.simulator.simulator import FragileLedger, Killed, SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.context import WorkerContext
from workers.data import eval_pixels
from workers.models.build import preprocessing
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.storage.checkpoints import open_weights
from workers.types import AnyOrder, ScoreMixOrder

ALPHAS = {"wise_ft": {"alphas": [0.0, 0.25, 0.5, 1.0]}}


def plan(*recipes: Any, **sections: Any) -> ExpandedExperiment:
    soup = {"recipes": ["best", *recipes], **sections.pop("soup", {})}
    return simulated(3, epochs=1, soup=soup, merge={"mode": "off"}, **sections)


def lived(world: World) -> tuple[State, list[AnyOrder]]:
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    assert schedule.is_over(Moment(world.expanded, state))
    return state, fleet.submitted


def points(submitted: list[AnyOrder]) -> list[ScoreMixOrder]:
    return [order for order in submitted if isinstance(order, ScoreMixOrder)]


def made(world: World, state: State, label: str) -> final_merges.FinalMerge:
    soups = final_merges.written_soups(Moment(world.expanded, state))
    return next(final for final, _ in soups if final.recipe.label == label)


def of(world: World, state: State, label: str = "wise_ft") -> list[dict[str, Any]]:
    (soup,) = [
        s for s in collect_results(Moment(world.expanded, state))["soups"] if s["recipe"] == label
    ]
    found: list[dict[str, Any]] = soup["curve"]
    return found


def test_points_are_scored_after_everything_was_chosen_and_only_where_nothing_is_known(
    folder: Path,
) -> None:
    world = World.at(folder, plan(ALPHAS, "uniform"))
    state, submitted = lived(world)
    asked = points(submitted)
    kinds = [order.kind for order in submitted]
    last = max(i for i, kind in enumerate(kinds) if kind in ("taste", "merge", "blend", "score"))
    assert kinds.index("point") > last
    (soup,) = [m.soup for m in state.merges.values() if m.opened.recipe == "wise_ft" and m.soup]
    passed = path_scores.path_scores(Moment(world.expanded, state), made(world, state, "wise_ft"))
    assert [each.alpha for each in passed] == [0.0, 0.25, 0.5, 1.0]
    known = {soup.mix.key, passed[-1].mix.key}
    assert [each.mix.key for each in asked] == [
        each.mix.key for each in passed if each.mix.key not in known
    ]
    assert all(set(each.splits) == {"test", "ood:sketch"} for each in asked)
    for each in of(world, state):
        assert set(each["scores"]) == {"test", "ood:sketch"}
    assert of(world, state, "uniform") == []


def test_the_scores_of_the_ends_are_those_of_the_models_that_they_are(folder: Path) -> None:
    base = "tests.simulator.probe_recipe:OnlyBase"
    world = World.at(folder, plan({"wise_ft": {"of": "uniform"}}, "uniform", base))
    state, submitted = lived(world)
    soups = {
        s["recipe"]: s["scores"] for s in collect_results(Moment(world.expanded, state))["soups"]
    }
    first, *_, last = of(world, state)
    for end, soup in ((first, soups["OnlyBase"]), (last, soups["uniform"])):
        assert end["scores"] == {split: soup[split] for split in ("test", "ood:sketch")}
    assert len(points(submitted)) in (8, 9) and len(last["mix"]["weights"]) == 3


def test_a_point_that_is_given_up_is_missing_and_changes_nothing_else(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        bad = order.kind == "point" and order.mix.weights[0][1] == 0.25
        return Mishap("error") if bad else None

    calm = live(World.at(folder / "calm", plan(ALPHAS)))
    world = World.at(folder / "broken", plan(ALPHAS), mishaps=breaks)
    state = live(world)
    assert state.served is not None and calm.served is not None
    assert state.served.soup == calm.served.soup
    assert [bool(each["scores"]) for each in of(world, state)] == [True, False, True, True]


def test_a_recipe_twice_makes_two_soups_that_are_told_apart(folder: Path) -> None:
    uniform = {"wise_ft": {"of": "uniform"}}
    world = World.at(folder, plan(ALPHAS, uniform, soup={"serve": "wise_ft-2"}))
    state, _ = lived(world)
    known = collect_results(Moment(world.expanded, state))
    assert [soup["recipe"] for soup in known["soups"]] == ["best", "wise_ft", "wise_ft-2"]
    assert len({soup["id"] for soup in known["soups"]}) == 3
    assert known["served"] == known["soups"][2]["id"]
    assert known["served"].startswith("soup/wise_ft-2-")
    assert [m.opened.label for m in state.merges.values()] == ["best", "wise_ft", "wise_ft-2"]
    assert len(of(world, state)) == 4 and len(of(world, state, "wise_ft-2")) == 11


def test_policies_share_the_ends_and_nothing_else(folder: Path) -> None:
    world = World.at(folder, plan(ALPHAS, soup={"batchnorm": "compare"}))
    state, submitted = lived(world)
    names = [each.name for each in points(submitted)]
    assert len(names) == len(set(names))
    singles = [each for each in points(submitted) if each.mix.single is not None]
    assert len(singles) <= 1
    assert not [k for k in state.scores if k.startswith("mix/") and k not in names]


def test_a_driver_killed_while_points_are_scored_ends_the_same(folder: Path) -> None:
    calm = World.at(folder / "calm", plan(ALPHAS))
    ledger = FragileLedger(calm.store, dies_at=-1, how="after")
    expected = live(calm, ledger)
    for dies_at in range(ledger.appends - 8, ledger.appends + 1):
        world = World.at(folder / str(dies_at), plan(ALPHAS))
        with pytest.raises(Killed):
            live(world, FragileLedger(world.store, dies_at, "torn"))
        assert of(world, live(world)) == of(calm, expected)


# With real weights


def test_the_curve_of_a_real_fleet_is_what_a_direct_evaluation_says(tmp_path: Path) -> None:
    """And an experiment that is extended by the recipe gets it, training nothing."""
    vit = ("model={name: test_vit, kwargs: {img_size: 32}}", "data.cache=off")
    uri, outcome = run_small(tmp_path, "soup.recipes=[best]", *vit)
    assert outcome.exit_code == 0
    wider = small_experiment(tmp_path, "soup.recipes=[best, {wise_ft: {of: uniform}}]", *vit)
    again = run.run_experiment(wider, Options(fleet="local", plain=True, extend=True))
    assert again.exit_code == 0 and again.results is not None
    (soup,) = [s for s in again.results["soups"] if s["recipe"] == "wise_ft"]
    assert [each["alpha"] for each in soup["curve"]] == [tenth / 10 for tenth in range(11)]
    plan, state, store = replayed(uri)
    worker = WorkerContext(config.worker_config(plan.experiment, "cpu"))
    for each in soup["curve"]:
        assert each["scores"].keys() == {"test"}
        expected = _directly(Moment(plan, state), worker, each["alpha"])
        assert each["scores"]["test"]["top1"] == expected.top1
        assert abs(each["scores"]["test"]["nll"] - expected.nll) < 1e-5
    done = run.run_experiment(wider, Options(fleet="local", plain=True, extend=True))
    assert not done.worked and done.results == again.results


def _directly(moment: Moment, worker: WorkerContext, alpha: float) -> Any:
    """(1 - alpha) * base + alpha * mean of the best checkpoints, in float64, by torch alone."""
    state, soups = moment.state, final_merges.written_soups(moment)
    (final,) = [final for final, _ in soups if final.recipe.name == "wise_ft"]
    places = [e.checkpoint for r in state.runs.values() for e in r.checkpoints]
    tuned = [p for p in places if p.name in {i.name for i in final.ingredients}]
    base = open_weights(worker.store, state.bases[final.cohort.base])
    model = worker.model(final.cohort.model)
    with torch.no_grad():
        for key, live_tensor in model.state_dict().items():
            all_ = [open_weights(worker.store, each)[key].double() for each in tuned]
            mean = torch.stack(all_).mean(dim=0)
            live_tensor.copy_((1 - alpha) * base[key].double() + alpha * mean)
    config_of = preprocessing(model, worker.config.data)
    pixels = eval_pixels(worker.images, "test", config_of)
    return score(logits(model, pixels, config_of, "cpu"), worker.images.labels("test"))
