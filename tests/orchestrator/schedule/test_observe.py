"""Observe rounds: an anytime soup that costs training nothing and decides nothing."""

from pathlib import Path

import pytest

from orchestrator.driver.driver import Driver
from orchestrator.schedule import final_merges
from orchestrator.schedule.moment import Moment
from tests.simulator.experiment import simulated
from tests.simulator.simulator import SimulatedFleet, driver, live
from tests.simulator.world import Mishap, World
from workers.types import AnyEvent, AnyOrder, MergeOpened, TasteOrder


def rounds(events: list[AnyEvent]) -> list[MergeOpened]:
    return [e for e in events if isinstance(e, MergeOpened) and e.observe]


class WatchedFleet(SimulatedFleet):
    """Once everything due was submitted, no slot is without the training that it could do."""

    def __init__(self, world: World, slots: int) -> None:
        super().__init__(world, slots)
        self.driver: Driver | None = None
        self.num_observed = 0

    def submit(self, order: AnyOrder, attempt: int) -> None:
        if isinstance(order, TasteOrder) and order.observe:
            self.num_observed += 1
            assert order.place == "merge"
        super().submit(order, attempt)

    def events(self, timeout_s: float) -> list[AnyEvent]:
        assert self.driver is not None
        state = self.driver.state
        training = sum(order.what == "train" for order in state.open.values())
        unfinished = sum(state.run(run.id).trained_to < 30 for run in self.world.expanded.runs)
        if state.bases:
            assert training == min(self.num_slots, unfinished)
        return super().events(timeout_s)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_training_never_waits_for_a_round(folder: Path, slots: int) -> None:
    fleet = WatchedFleet(World.at(folder, simulated(5, epochs=3)), slots)
    fleet.driver = driver(fleet.world, fleet)
    fleet.driver.run()
    assert fleet.num_observed


def test_a_round_opens_each_epoch_of_the_fleet_and_skips_while_one_is_unfinished(
    folder: Path,
) -> None:
    world = World.at(folder, simulated(4, epochs=4))
    live(world, slots=2)
    numbers = [opened.round for opened in rounds(world.ledger().replay())]
    assert numbers == sorted(set(numbers)) and 3 <= len(numbers) <= 8


def test_rounds_are_off_when_asked(folder: Path) -> None:
    world = World.at(folder, simulated(3, merge={"mode": "off"}))
    live(world)
    assert not rounds(world.ledger().replay())


def test_a_round_is_never_written_scored_or_served(folder: Path) -> None:
    world = World.at(folder, simulated(4, epochs=3))
    state = live(world)
    finals = final_merges.final_merges(Moment(world.expanded, state))
    assert all(not state.merges[final.id].opened.observe for final in finals)
    observed = {m.opened.merge for m in state.merges.values() if m.opened.observe}
    assert observed and not observed & {final.id for final in finals}
    assert len(state.soups) <= len(finals)


def test_the_final_soups_are_the_same_without_rounds(folder: Path) -> None:
    served = []
    for mode in ("observe", "off"):
        world = World.at(folder / mode, simulated(5, epochs=3, merge={"mode": mode}))
        state = live(world)
        served.append((state.served and state.served.soup, sorted(state.soups)))
    assert served[0] == served[1]


def test_a_round_that_breaks_breaks_nothing_else(folder: Path) -> None:
    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("error") if "observe" in order.id else None

    calm, broken = World.at(folder / "a"), World.at(folder / "b", mishaps=breaks)
    one, other = live(calm), live(broken)
    assert one.served is not None and other.served is not None
    assert one.served.soup == other.served.soup


def test_a_taste_that_breaks_in_a_round_is_tried_afresh_at_the_end(folder: Path) -> None:
    """What the merge actor could not do, a slot may; the final soup is the same."""

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        return Mishap("error") if isinstance(order, TasteOrder) and order.observe else None

    for seed in range(8):
        calm = World.at(folder / f"a{seed}", simulated(3, epochs=1), seed=seed)
        broken = World.at(folder / f"b{seed}", simulated(3, epochs=1), seed=seed, mishaps=breaks)
        one, other = live(calm), live(broken)
        assert sorted(one.soups) == sorted(other.soups)


def test_a_corrupt_checkpoint_in_a_round_does_not_stop_the_driver(folder: Path) -> None:
    """The round names a checkpoint that no longer counts."""
    damaged: list[str] = []

    def breaks(order: AnyOrder, attempt: int) -> Mishap | None:
        if isinstance(order, TasteOrder) and order.observe and not damaged:
            damaged.append(order.ingredients[0].id)
            return Mishap("corrupt", checkpoint=damaged[0])
        return None

    state = live(World.at(folder, simulated(4, epochs=3), mishaps=breaks))
    assert damaged
    assert state.served is not None and state.served.soup is not None


def test_a_period_may_be_counted_in_steps(folder: Path) -> None:
    """Two slots do ten steps each between two looks: every twenty steps of the fleet a round."""
    every_epoch, in_steps = (
        World.at(folder / name, simulated(4, epochs=4, merge={"every": every}))
        for name, every in (("epochs", 1), ("steps", "10 steps"))
    )
    for world in (every_epoch, in_steps):
        live(world, slots=2)
    numbers = [
        [opened.round for opened in rounds(world.ledger().replay())]
        for world in (every_epoch, in_steps)
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) >= 3
