"""Extensions: any beginning of an experiment's life, grown by runs, recipes and ensembles."""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.commands.run import extension
from orchestrator.config import Experiment
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.experiment.sweep import expand
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from tests.simulator.experiment import simulated
from tests.simulator.simulator import FragileLedger, Killed, live
from tests.simulator.world import World
from workers.storage.layout import LEDGER
from workers.types import Abandoned, Cancelled, MergeOpened, event_adapter

MORE_RUNS: dict[str, dict[str, Any]] = {
    "seeds": {"sweep": {"seeds": 4}},
    "setting": {"sweep": {"seeds": 2, "space": {"train.lr": [1e-3, 0.1]}}},
    "model": {"sweep": {"seeds": 2, "space": {"model.name": ["test_vit", "test_resnet"]}}},
}
MORE_SOUPS: dict[str, dict[str, Any]] = {
    "recipe": {"soup": {"recipes": ["best", "uniform", "greedy", {"greedy": {"tie": "strict"}}]}},
    "ensemble": {"ensemble": {"stacking": True}},
}
EXTENSIONS = MORE_RUNS | MORE_SOUPS
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"train": {"model_ema_decay": 0.9}},
    "patience": {"train": {"patience": 1}},
    "folds": {"data": {"source": "digits", "folds": 2}},
    "base": {"base": {"probe_epochs": 1, "trunk_epochs": 2}},
    "all": {"soup": {"ingredients": "all"}},
    "time": {"fleet": {"max_hours": 0.002}},
}
OBSERVE = {"merge": {"every": "10 steps"}}
SYNC = {"merge": {"mode": "sync", "method": "mean"}}


def planned_with(*sections: dict[str, Any]) -> ExpandedExperiment:
    tree: dict[str, Any] = {}
    for one in sections:
        tree |= {key: tree.get(key, {}) | value for key, value in one.items()}
    return simulated(2, epochs=3, **tree)


def extended_by(plan: ExpandedExperiment, *names: str) -> ExpandedExperiment:
    """Without a limit of time, which may change at any restart."""
    tree = plan.experiment.model_dump(mode="json")
    tree["fleet"]["max_hours"] = None
    for name in names:
        for section, values in EXTENSIONS[name].items():
            tree[section] |= values
    experiment = Experiment.model_validate(tree)
    return ExpandedExperiment(experiment, expand(experiment), plan.ranks)


def extend(world: World, *names: str) -> None:
    """As the command does it: the event first."""
    larger = extended_by(world.expanded, *names)
    event = extension(world.expanded.experiment, larger.experiment)
    assert event is not None
    world.ledger().append([event])
    world.expanded = larger


def begun(world: World, dies_at: int, how: str, **fleet: Any) -> None:
    """The life of a driver that dies at its nth write, or comes to its end before."""
    with contextlib.suppress(Killed):
        live(world, FragileLedger(world.store, dies_at, how), **fleet)


def as_before_abandonment(world: World) -> None:
    """The ledger as a version wrote it that had no event for rounds that outlived training."""
    for path in world.store.list(LEDGER):
        text = re.sub(r',"crc32":\d+}\n', "}\n", world.store.read(path).decode())
        lines = text.splitlines()
        events = [event_adapter.validate_json(line) for line in lines if line.endswith("}")]
        if len(events) == len(lines) and any(isinstance(e, Abandoned) for e in events):
            old = [
                Cancelled(seq=e.seq, time=e.time) if isinstance(e, Abandoned) else e for e in events
            ]
            text = "".join(f"{e.model_dump_json()}\n" for e in old)
            world.store.write(path, text.encode())


def require_complete(world: World, state: State) -> None:
    moment = Moment(world.expanded, state)
    assert state.served is not None and state.served.soup is not None
    assert state.finished is not None and world.deleted == state.retired
    assert {moment.phase_of(run) for run in world.expanded.runs} == {"done"}
    assert not [m for m in state.unmixed.values() if m.opened.observe], "mixed or abandoned"


LIFE = {
    "seed": st.integers(0, 1000),
    "slots": st.integers(1, 3),
    "dies_at": st.integers(3, 70),
    "how": st.sampled_from(["before", "torn", "after"]),
    "then_at": st.integers(2, 60),
    "is_old": st.booleans(),
}


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # whole lives are slow to shrink
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    setting=st.sampled_from(sorted(SETTINGS)),
    more=st.sets(st.sampled_from(sorted(EXTENSIONS)), min_size=1),
    **LIFE,
)
def test_any_beginning_extended_comes_to_a_good_end(
    folder: Path, setting: str, more: set[str], **life: Any
) -> None:
    """The world checks that no order names a checkpoint that was deleted."""
    extend_and_finish(folder, planned_with(OBSERVE, SETTINGS[setting]), more, **life)


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(more=st.sets(st.sampled_from(sorted(MORE_SOUPS)), min_size=1), **LIFE)
def test_an_experiment_with_sync_rounds_gains_soups(
    folder: Path, more: set[str], **life: Any
) -> None:
    extend_and_finish(folder, planned_with(SYNC), more, **life)


def extend_and_finish(
    folder: Path,
    plan: ExpandedExperiment,
    more: set[str],
    *,
    seed: int,
    slots: int,
    dies_at: int,
    how: str,
    then_at: int,
    is_old: bool,
) -> None:
    world = World.at(Path(tempfile.mkdtemp(dir=folder)), plan, seed=seed)
    begun(world, dies_at, how, slots=slots, lazy=0.4, seed=seed)
    if is_old:
        as_before_abandonment(world)
    extend(world, *more)
    begun(world, then_at, how, slots=slots, lazy=0.4, seed=seed + 1)
    require_complete(world, live(world, slots=slots))


@pytest.mark.parametrize("is_old", [False, True])
def test_a_round_that_outlives_training_is_abandoned_before_anything_of_it_is_deleted(
    folder: Path, is_old: bool
) -> None:
    world = World.at(folder, simulated(3))
    live(world, slots=3)
    events = world.ledger().replay()
    (abandoned,) = [event for event in events if isinstance(event, Abandoned)]
    (opened,) = [e for e in events if isinstance(e, MergeOpened) and e.merge == abandoned.merge]
    members = {member.name for member in opened.ingredients}
    retired = [
        event.seq
        for event in events
        if event.kind == "retired"
        and members & {checkpoint.rpartition("-")[0] for checkpoint in event.checkpoints}
    ]
    assert retired and min(retired) > abandoned.seq
    if is_old:
        as_before_abandonment(world)
        assert not any(isinstance(event, Abandoned) for event in world.ledger().replay())
    extend(world, "seeds", "recipe")
    require_complete(world, live(world, slots=3))
