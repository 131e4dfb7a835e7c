"""One experiment in a simulated world, with the state and the ledger that the driver made of it.

Five runs of three epochs on two slots. The second run loses a worker once, the fourth diverges, the
fifth is too far from the others for a greedy soup.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.report.results import collect_results
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.linear_world import LinearWorld
from tests.simulator.simulator import live
from tests.simulator.world import Mishap
from workers.types import AnyEvent, AnyOrder, TrainOrder

Json = dict[str, Any]

LRS = [5e-4, 1e-3, 2e-3, 5e-2, 7e-4]
NOISE = (0.3, 0.28, 0.3, 1.0, 0.6)
RECIPES = (
    *("best", "uniform", "greedy", "pruned", "model_stock"),
    *({"learned": {"by": "component"}}, "mehl", "wise_ft"),
)
DIVERGED = "the loss is not finite at step 17"


@dataclass(frozen=True)
class Scenario:
    expanded: ExpandedExperiment
    events: list[AnyEvent]
    analysis: Json
    """Content of analysis.json."""

    @property
    def state(self) -> State:
        return fold(self.events)

    @property
    def moment(self) -> Moment:
        return Moment(self.expanded, self.state)

    def results(self) -> Json:
        """A copy of its own for each test."""
        return collect_results(self.moment)

    def until(self, kind: str, nth: int) -> "Scenario":
        """The experiment right after the nth event of a kind."""
        ends = [index for index, event in enumerate(self.events) if event.kind == kind]
        return Scenario(self.expanded, self.events[: ends[nth - 1] + 1], self.analysis)


def carry_out(folder: Path) -> Scenario:
    plan = simulated(
        1,
        epochs=3,
        sweep={"space": {"train.lr": LRS}},
        soup={"recipes": RECIPES, "serve": "greedy"},
    )
    ids = [run.id for run in plan.runs]

    def mishap(order: AnyOrder, attempt: int) -> Mishap | None:
        index = ids.index(order.run.id) if isinstance(order, TrainOrder) else None
        if index == 1 and attempt == 1:
            return Mishap("lost", after=3, message="the worker of slot-1 died")
        return Mishap("diverged", after=1, message=DIVERGED) if index == 3 else None

    world = LinearWorld.at(folder, plan, noise=NOISE, mishaps=mishap)
    live(world)
    return Scenario(plan, list(world.ledger().replay()), world.analysis())
