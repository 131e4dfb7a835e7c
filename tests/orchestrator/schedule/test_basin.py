"""The basin: who lies beyond a barrier is named, and mixed by no recipe."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import schedule
from orchestrator.config import Experiment
from orchestrator.experiment.identity import identity
from orchestrator.report.results import collect_results
from orchestrator.schedule import final_merges
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet, driver
from tests.simulator.world import Mishap, World
from workers.types import AnyOrder, Mix, TasteOrder


@dataclass
class Valley(World):
    """Mixes with the second run score badly."""

    def score(self, mix: Mix) -> float:
        far = any(name.startswith(self.expanded.runs[1].id) for name in mix.names)
        return 0.1 if far and mix.single is None else 0.5 + super().score(mix) / 10


def lived(world: World) -> tuple[State, list[AnyOrder]]:
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    assert schedule.is_over(Moment(world.expanded, state))
    return state, fleet.submitted


@pytest.mark.parametrize("early_stops", [True, False])
def test_who_lies_beyond_a_barrier_is_named_and_mixed_by_none(
    folder: Path, early_stops: bool
) -> None:
    plan = simulated(4, soup={"basin": 0.1})
    world = Valley.at(folder, plan, early_stops=early_stops)
    far = plan.runs[1].id
    state, _ = lived(world)
    assert state.served is not None and state.served.soup is not None
    made = {
        final.recipe.label: final for final, _ in final_merges.written_soups(Moment(plan, state))
    }
    assert len(made["best"].ingredients) == 4
    for label in ("uniform", "greedy"):
        final = made[label]
        assert far not in [each.run for each in final.ingredients] and len(final.ingredients) == 3
        soup = state.merges[final.id].soup
        assert soup is not None and soup.decisions[0].candidate.startswith(far)
        assert not soup.decisions[0].accepted
        assert "outside the basin" in soup.decisions[0].reason
        assert all(not name.startswith(far) for name in soup.mix.names)
    for told in collect_results(Moment(plan, state))["soups"]:
        assert all(decision["run"] for decision in told["decisions"]), "who was left out, too"
        out = [d["run"] for d in told["decisions"] if "outside the basin" in d["reason"]]
        assert out == ([far] if told["recipe"] != "best" else [])


def test_without_a_barrier_nothing_is_tasted_for_it(folder: Path) -> None:
    plan = simulated(4, soup={"recipes": ["best", "uniform"]})
    state, submitted = lived(Valley.at(folder, plan))
    tastes = [o for o in submitted if isinstance(o, TasteOrder) and not o.observe]
    assert all("soup/" in str(order.mix.names) or len(order.mix.names) == 4 for order in tastes)
    assert all(not opened.opened.left_out for opened in state.merges.values())


def test_a_mix_that_cannot_be_tasted_leaves_its_ingredient_out(folder: Path) -> None:
    plan = simulated(4, soup={"basin": 0.9})

    def fails(order: AnyOrder, attempt: int) -> Mishap | None:
        bad = isinstance(order, TasteOrder) and plan.runs[1].id in str(order.mix.names)
        return Mishap("refused", message="not finite") if bad else None

    state, _ = lived(World.at(folder, plan, mishaps=fails, seed=1))
    uniform = next(
        f for f, _ in final_merges.written_soups(Moment(plan, state)) if f.recipe.label == "uniform"
    )
    assert [each.run for each in uniform.ingredients] == [
        run.id for run in plan.runs if run.id != plan.runs[1].id
    ]
    assert "not finite" in uniform.left_out[0].reason


def test_an_experiment_without_the_key_is_the_one_it_was() -> None:
    experiment = simulated(2).experiment
    assert "basin" not in str(identity(experiment))
    changed = Experiment.model_validate(
        experiment.model_dump(exclude_defaults=True) | {"soup": {"basin": 0.1}}
    )
    assert identity(changed)["soup"] == {"basin": 0.1}
