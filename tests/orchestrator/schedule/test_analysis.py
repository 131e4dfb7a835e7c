"""The analysis: once, when everything is compared, and nobody's harm if it fails."""

from pathlib import Path

import pytest

from orchestrator import schedule
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule import analysis, scoring, serving
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet, driver
from tests.simulator.world import Mishap, World
from workers.types import AnalyseOrder, AnyOrder, Mix, TasteOrder


def lived(world: World) -> tuple[State, list[AnyOrder]]:
    fleet = SimulatedFleet(world)
    state = driver(world, fleet).run()
    return state, fleet.submitted


def analysed(submitted: list[AnyOrder]) -> AnalyseOrder:
    (order,) = (order for order in submitted if isinstance(order, AnalyseOrder))
    return order


def uniform_is_served(**sections: object) -> ExpandedExperiment:
    return simulated(4, soup={"serve": "uniform"}, **sections)  # type: ignore[arg-type]


def test_everything_scored_is_analysed_once_and_last(folder: Path) -> None:
    world = World.at(folder, uniform_is_served())
    state, submitted = lived(world)
    order = analysed(submitted)
    assert submitted[-1] == order and analysis.is_analysed(Moment(world.expanded, state))
    assert schedule.is_over(Moment(world.expanded, state))
    kinds = [each.kind for each in order.subjects]
    assert kinds == ["ingredient"] * 4 + ["soup"] * 3 + ["ensemble"]
    assert [each.label for each in order.subjects] == [
        *(run.id for run in world.expanded.runs),
        "best",
        "uniform",
        "greedy",
        "soft_voting",
    ]
    assert {order.best_single, order.served} <= {each.id for each in order.subjects}
    assert order.splits == ("val", "test", "ood:sketch") and order.not_analysed == ()
    (weighed,) = order.weighed
    assert [each.id for each in weighed.ingredients] == [e.id for e in order.subjects[:4]]
    shares = [each for each in order.subjects if each.predictions is not None]
    assert "best" in {each.label for each in shares}


def test_the_way_to_the_served_soup_is_tasted_in_the_middle(folder: Path) -> None:
    world = World.at(folder, uniform_is_served())
    state, submitted = lived(world)
    order = analysed(submitted)
    assert order.served is not None
    best = order.best_single.rpartition("-")[0]
    mix = Mix.mean([best, order.served])
    (taste,) = (o for o in submitted if isinstance(o, TasteOrder) and o.mix == mix)
    assert [each.name for each in taste.ingredients] == [best, order.served]
    assert [fraction for fraction, _ in order.path] == [0.0, 0.5, 1.0]
    assert order.path[1][1] == world.score(mix)
    assert order.path[2][1] == state.scores[order.served]["val"].top1


def test_a_single_model_is_no_way_from_itself(folder: Path) -> None:
    world = World.at(folder, simulated(3, soup={"serve": "best"}))
    assert analysed(lived(world)[1]).path == ()


@pytest.mark.parametrize("kind", ["analyse", "taste"])
def test_a_failed_analysis_leaves_soups_and_scores_as_they_are(folder: Path, kind: str) -> None:
    def fails(order: AnyOrder, attempt: int) -> Mishap | None:
        is_recipes = isinstance(order, TasteOrder) and "soup/" not in str(order.mix.names)
        return Mishap("error") if order.kind == kind and not is_recipes else None

    world = World.at(folder, uniform_is_served(), mishaps=fails)
    state, submitted = lived(world)
    assert schedule.is_over(Moment(world.expanded, state))
    assert state.served is not None and state.served.soup == serving.soup_to_serve(
        Moment(world.expanded, state)
    )
    if kind == "taste":
        assert analysed(submitted).path[1] == (0.5, None)
        assert analysis.is_analysed(Moment(world.expanded, state))
    else:
        assert not analysis.is_analysed(Moment(world.expanded, state))


def test_only_the_best_few_are_analysed_and_the_others_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "MAX_INGREDIENTS", 3)
    world = World.at(folder, simulated(6))
    state, submitted = lived(world)
    order = analysed(submitted)
    singles = scoring.scored_variants(Moment(world.expanded, state))
    best = sorted(singles, key=lambda s: (-s[1].score.top1, s[0].id))[:3]  # type: ignore[union-attr]
    kept = {event.checkpoint.id for _, event in best}
    assert {each.id for each in order.subjects if each.kind == "ingredient"} == kept
    assert {*order.not_analysed} | kept == {event.checkpoint.id for _, event in singles}


def test_a_finished_experiment_has_nothing_more_to_analyse(folder: Path) -> None:
    world = World.at(folder, uniform_is_served())
    lived(world)
    assert schedule.due(Moment(world.expanded, world.state())) == ()
    assert analysis.is_analysed(Moment(world.expanded, world.state()))
