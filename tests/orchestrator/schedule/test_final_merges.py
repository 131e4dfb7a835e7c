"""Final merges: questions are answered from what is known, and greedy is the textbook's."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import schedule
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.schedule import answers
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.simulator.experiment import simulated, then
from tests.simulator.simulator import SimulatedFleet, live
from tests.simulator.world import Mishap, World
from workers.types import (
    WORST,
    AnyOrder,
    FirstAtLeast,
    FirstResult,
    Ingredient,
    MergeOpened,
    MergeOrder,
    Mix,
    Opened,
    Ordered,
    Taste,
    TasteOrder,
    TasteResult,
    TasteResults,
)

NAMES = [f"run{i}/00000010" for i in range(4)]
OPENED = MergeOpened(
    merge="greedy-c",
    cohort="c",
    recipe="greedy",
    ingredients=tuple(
        Ingredient(name=name, run=name.partition("/")[0], score=0.5) for name in NAMES
    ),
    observe=False,
)
PAIRS = tuple(Mix.mean([NAMES[0], name]) for name in NAMES[1:])


def known(**scores: TasteResult) -> State:
    """`a`, `b`, `c`: the three pairs."""
    keys = {"a": PAIRS[0].key, "b": PAIRS[1].key, "c": PAIRS[2].key}
    return State(tastes={("c", keys[name]): tasting for name, tasting in scores.items()})


def whole(score: float) -> TasteResult:
    return TasteResult(score=score, at_most=score, samples=40)


def bound(at_most: float) -> TasteResult:
    return TasteResult(score=None, at_most=at_most, samples=8)


# Answers


def test_a_first_is_answered_as_soon_as_those_before_the_winner_are_known() -> None:
    question = FirstAtLeast(mixes=PAIRS, at_least=0.6)
    assert answers.answer_to(question, known(b=whole(0.9)), OPENED) is None
    found = answers.answer_to(question, known(a=bound(0.55), b=whole(0.9)), OPENED)
    assert found == FirstResult(index=1, tried=(bound(0.55), whole(0.9)))


def test_a_first_that_nothing_reaches_has_tried_all() -> None:
    tried = known(a=bound(0.5), b=whole(0.59), c=whole(0.1))
    found = answers.answer_to(FirstAtLeast(mixes=PAIRS, at_least=0.6), tried, OPENED)
    assert isinstance(found, FirstResult) and found.index is None and len(found.tried) == 3


@pytest.mark.parametrize(("strict", "index"), [(False, 0), (True, 1)])
def test_a_tie_is_enough_unless_the_rule_is_strict(strict: bool, index: int) -> None:
    tied = known(a=whole(0.6), b=whole(0.7))
    found = answers.answer_to(FirstAtLeast(mixes=PAIRS, at_least=0.6, strict=strict), tied, OPENED)
    assert isinstance(found, FirstResult) and found.index == index


def test_a_bound_that_does_not_decide_is_no_answer() -> None:
    question = FirstAtLeast(mixes=PAIRS, at_least=0.6)
    assert answers.answer_to(question, known(a=bound(0.6), b=whole(0.9)), OPENED) is None
    assert next(answers.unknown(question, known(a=bound(0.6)), OPENED)) == PAIRS[0]


def test_a_bound_answers_no_taste() -> None:
    question = Taste(mixes=PAIRS[:1])
    assert answers.answer_to(question, known(a=bound(0.3)), OPENED) is None
    found = answers.answer_to(question, known(a=whole(0.3)), OPENED)
    assert found == TasteResults(scores=(0.3,), nll=(None,))


def test_a_mix_of_one_is_its_ingredient() -> None:
    question = Taste(mixes=(Mix.mean([NAMES[0]]),))
    assert answers.answer_to(question, State(), OPENED) == TasteResults(scores=(0.5,), nll=(None,))


def test_nothing_beyond_a_known_winner_is_tasted() -> None:
    question = FirstAtLeast(mixes=PAIRS, at_least=0.6)
    assert tuple(answers.unknown(question, known(b=whole(0.7)), OPENED)) == PAIRS[:1]


def test_a_taste_that_was_given_up_counts_as_worst() -> None:
    question = FirstAtLeast(mixes=PAIRS, at_least=0.6)
    state = State(
        gave_up={f"taste-c-{PAIRS[0].key}-0.6": "error"},
        tastes=known(b=whole(0.7)).tastes,
    )
    found = answers.answer_to(question, state, OPENED)
    assert isinstance(found, FirstResult) and found.index == 1
    assert found.tried[0] == TasteResult(score=None, at_most=WORST, samples=0)


def test_a_taste_given_up_in_a_round_refuses_nothing_at_the_end() -> None:
    question = FirstAtLeast(mixes=PAIRS, at_least=0.6)
    state = State(gave_up={f"observe-c-{PAIRS[0].key}-0.6": "error"})
    assert next(answers.unknown(question, state, OPENED)) == PAIRS[0]
    observed = OPENED.model_copy(update={"observe": True})
    assert next(answers.unknown(question, state, observed)) == PAIRS[1]


# Greedy through the machine


def textbook(world: World, ingredients: tuple[Ingredient, ...], strict: bool) -> tuple[str, ...]:
    """Wortsman et al. 2022, recipe 1, on the world's own table."""
    queue = sorted(ingredients, key=lambda i: (-i.score, i.run))
    soup = [queue[0].name]
    score = queue[0].score
    for candidate in queue[1:]:
        with_it = world.score(Mix.mean([*soup, candidate.name]))
        if with_it > score or (with_it == score and not strict):
            soup, score = [*soup, candidate.name], with_it
    return tuple(soup)


@settings(
    max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 8),
    early_stops=st.booleans(),
    tie=st.sampled_from(["accept", "strict"]),
    num_runs=st.integers(1, 7),
    mode=st.sampled_from(["observe", "off"]),
)
def test_speculation_and_early_stops_leave_greedy_the_textbooks(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    width: int,
    early_stops: bool,
    tie: str,
    num_runs: int,
    mode: str,
) -> None:
    plan = simulated(num_runs, epochs=1, soup={"tie": tie}, merge={"mode": mode})
    world = World.at(
        tmp_path_factory.mktemp("w"), plan, seed=seed, early_stops=early_stops, writes=False
    )
    state = run_in_memory(world, slots=width)
    (made,) = [m for m in state.merges.values() if m.opened.merge.startswith("greedy-")]
    assert made.soup is not None
    assert made.soup.mix.names == textbook(world, made.opened.ingredients, tie == "strict")
    accepted = [d.candidate for d in made.soup.decisions if d.accepted]
    assert tuple(accepted) == made.soup.mix.names
    assert len(made.soup.decisions) == num_runs, "each candidate is offered once"


def run_in_memory(world: World, slots: int) -> State:
    """The schedule and a fleet without a ledger: what is due is done."""
    fleet = SimulatedFleet(world, slots=slots, lazy=0.3, seed=world.seed)
    state = fold([Opened(driver="h:1", fleet="simulated", slots=slots)])
    while not schedule.is_over(Moment(world.expanded, state)):
        state = then(state, schedule.decisions(Moment(world.expanded, state), world.clock))
        for place in ("merge", "slot"):
            due = [o for o in schedule.due(Moment(world.expanded, state)) if o.place == place]
            for order in due[: fleet.capacity(place, len(due))]:
                state = then(state, [ordered(state, order)])
                fleet.submit(order, state.attempts[order.run_id or order.id])
        state = then(state, fleet.events(0.0))
    return state


def ordered(state: State, order: AnyOrder) -> Ordered:
    attempt = state.attempts.get(order.run_id or order.id, 0) + 1
    return Ordered(
        order=order.id, run=order.run_id, attempt=attempt, what=order.kind, due_since=0.0
    )


# Failures in merges


def first_greedy_taste_of(world: World) -> str:
    state = world.state()
    (made,) = [m for m in state.merges.values() if m.opened.merge.startswith("greedy-")]
    assert made.soup is not None
    best, second = made.soup.decisions[0].candidate, made.soup.decisions[1].candidate
    return Mix.mean([best, second]).key


def test_a_candidate_whose_taste_was_given_up_is_refused(folder: Path) -> None:
    plan = simulated(3, soup={"recipes": ["greedy"]}, merge={"mode": "off"})
    calm = World.at(folder / "calm", plan, seed=next(_accepting_seeds(plan, folder)))
    live(calm)
    key = first_greedy_taste_of(calm)

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("error") if isinstance(order, TasteOrder) and order.mix.key == key else None

    world = World.at(folder / "broken", plan, seed=calm.seed, mishaps=breaks)
    state = live(world)
    (made,) = state.merges.values()
    assert made.soup is not None
    refused = made.soup.decisions[1]
    assert not refused.accepted
    assert state.served is not None and state.served.soup is not None


def _accepting_seeds(plan: ExpandedExperiment, folder: Path):  # type: ignore[no-untyped-def]
    """Seeds whose greedy takes its second candidate."""
    for seed in range(50):
        world = World.at(folder / f"seed{seed}", plan, seed=seed, writes=False)
        state = run_in_memory(world, slots=2)
        (made,) = state.merges.values()
        if made.soup is not None and made.soup.decisions[1].accepted:
            yield seed


def test_a_recipe_that_is_given_up_takes_no_other_with_it(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        is_greedy = isinstance(order, MergeOrder) and order.merge.startswith("greedy-")
        return Mishap("refused") if is_greedy else None

    state = live(World.at(folder, mishaps=breaks))
    recipes = {name.partition("-")[0].removeprefix("soup/") for name in state.soups}
    assert recipes == {"best", "uniform"}
    assert state.served is not None and state.served.soup is not None


def test_a_blend_that_is_given_up_takes_no_other_with_it(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("error") if order.id.startswith("blend-uniform") else None

    state = live(World.at(folder, mishaps=breaks))
    assert not any("uniform" in name for name in state.soups)
    assert state.served is not None and state.served.soup is not None


def test_one_cohort_per_model_and_one_merge_per_cohort_and_recipe(folder: Path) -> None:
    plan = simulated(1, sweep={"space": {"model.name": ["test_vit", "test_resnet"]}, "seeds": 2})
    state = live(World.at(folder, plan))
    finals = [m for m in state.merges.values() if not m.opened.observe]
    assert len({m.opened.cohort for m in finals}) == 2
    assert len(finals) == 6
    for made in finals:
        assert made.soup is not None
        members = {name.partition("/")[0] for name in made.soup.mix.names}
        shapes = {run.model.name for run in plan.runs if run.id in members}
        assert len(shapes) == 1, "weights of two cohorts are never averaged"
