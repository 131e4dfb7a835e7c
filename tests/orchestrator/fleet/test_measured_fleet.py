"""A real fleet with recipes that measure: model_stock, a gradient, the base, all policies."""

from pathlib import Path

from orchestrator.commands import run
from orchestrator.commands.run import Options
from orchestrator.commands.verify import _rebuild, verify_experiment
from orchestrator.schedule.moment import Moment
from tests.orchestrator.small_fleet import replayed, run_small, small_experiment
from workers.merging.write_soup import SoupFile

ASKING = "tests.simulator.probe_recipe:ProbeRecipe"
RECIPES = f"soup.recipes=[best, uniform, model_stock, {{'{ASKING}': {{steps: 2}}}}]"


def test_soups_that_measure_are_made_rebuilt_and_extended(tmp_path: Path) -> None:
    uri, outcome = run_small(tmp_path, RECIPES, "soup.batchnorm=compare")
    assert outcome.exit_code == 0 and outcome.results is not None
    expanded, state, store = replayed(uri)
    assert outcome.results["served"] is not None
    soups = {soup["recipe"]: soup for soup in outcome.results["soups"]}
    policies = ("recompute", "average", "best")
    asked = [f"{r}@{p}" for r in ("uniform", "model_stock", "ProbeRecipe") for p in policies]
    assert set(soups) == {"best", *asked}
    for policy in policies:
        soup = soups[f"ProbeRecipe@{policy}"]
        assert soup["batchnorm"] == policy and soup["cohort"] in outcome.results["cohorts"][0]["id"]
        assert len(soup["mix"]["components"]) == 1 and len(soup["mix"]["weights"]) == 4
        assert set(soup["scores"]) >= {"val", "test"}
        made = SoupFile.model_validate_json(store.read(f"soups/{soup['id'][5:]}/soup.json"))
        assert made.members[-1].name.startswith("base/") and made.cohort.batchnorm == policy
    stock = soups["model_stock@average"]["mix"]
    assert len(stock["components"]) > 0 and stock["weights"][-1][1] == 0
    (facts,) = state.preflight.models.values() if state.preflight is not None else ()
    assert "fc" in facts.components and not state.measured
    assert not verify_experiment(Moment(expanded, state), store, lambda line: None)
    for name in state.soups:
        assert not list(_rebuild(Moment(expanded, state), store, name)), name
    trained = [run.trained_to for run in state.runs.values()]
    more = RECIPES.replace("best,", "best, 'tests.simulator.probe_recipe:OnlyBase',")
    wider = small_experiment(tmp_path, more, "soup.batchnorm=compare")
    again = run.run_experiment(wider, Options(fleet="local", plain=True, extend=True))
    assert again.exit_code == 0 and again.results is not None
    assert [run.trained_to for run in again.moment.state.runs.values()] == trained
    only_base = [s for s in again.results["soups"] if s["recipe"].startswith("OnlyBase")]
    assert len(only_base) == 3 and all("test" in soup["scores"] for soup in only_base)
