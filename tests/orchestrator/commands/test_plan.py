"""Plan: correct numbers, the same refusals as `run`, and nothing left behind."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.commands.estimate import kind, makespan, num_rounds, peak_bytes, seconds
from orchestrator.commands.plan import Machine, make_plan, plan_view, size
from orchestrator.config.sections import FleetConfig
from orchestrator.experiment.resolved import resolve
from tests.orchestrator.small_fleet import run_small, small_experiment
from tests.simulator.experiment import facts, simulated
from workers.errors import UserError
from workers.types import RunTiming


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def shown(view: object) -> str:
    sink = io.StringIO()
    Console(width=160, file=sink).print(view)
    return sink.getvalue()


def test_a_plan_agrees_with_the_run(folder: Path) -> None:
    plan = make_plan(small_experiment(folder, "base.trunk_epochs=0"))
    summary = plan.summary
    assert list(summary) == [
        "runs",
        "steps_per_run",
        "slots",
        "checkpoint_bytes",
        "storage_bytes",
        "seconds",
    ]
    _, outcome = run_small(folder, "base.trunk_epochs=0")
    runs = outcome.moment.state.runs
    assert summary["runs"] == len(runs) == 3
    assert {run.trained_to for run in runs.values()} == {summary["steps_per_run"]}
    largest = max(e.checkpoint.num_bytes for run in runs.values() for e in run.checkpoints)
    # Step counters and position are small compared with the moments of the optimizer.
    assert largest == pytest.approx(summary["checkpoint_bytes"], rel=0.02)
    stored = sum(path.stat().st_size for path in files_below(folder / "runs"))
    assert 0.5 * stored < summary["storage_bytes"] < 3 * stored
    assert summary["seconds"] > 0


def test_a_plan_starts_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    experiment = small_experiment(tmp_path)
    before = files_below(tmp_path)
    text = shown(plan_view(make_plan(experiment)))
    assert files_below(tmp_path) == before and not (tmp_path / "runs").exists()
    for expected in ("(base)", "Data: 2 classes", "Slots: ", "Storage: ", "Time: about", "timed"):
        assert expected in text


def test_runs_of_unequal_length_are_listed(tmp_path: Path) -> None:
    experiment = small_experiment(tmp_path, "sweep.seeds=1", "sweep.space={train.epochs: [1, 3]}")
    steps = make_plan(experiment).summary["steps_per_run"]
    assert len(steps) == 2 and steps[1] == 3 * steps[0]


def test_corrupt_images_are_counted_and_named(tmp_path: Path) -> None:
    experiment = small_experiment(tmp_path)
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"not an image")
    text = shown(plan_view(make_plan(experiment)))
    assert "1 images do not decode" in text and "cat/broken.png" in text


def test_a_plan_refuses_what_a_run_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_resnet"):
        make_plan(small_experiment(tmp_path, "model.name=test_resne"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a writable folder"):
        make_plan(small_experiment(tmp_path, f"storage={tmp_path}/file/runs"))


def test_a_run_that_does_not_fit_this_machine_is_reported(tmp_path: Path) -> None:
    plan = make_plan(small_experiment(tmp_path, "fleet.cpus_per_run=100000", "sweep.seeds=1"))
    assert plan.summary["slots"] == 0 and plan.summary["seconds"] > 0
    assert "not even one run fits" in shown(plan_view(plan))


def test_slots_are_the_runs_that_fit() -> None:
    machine = Machine(cpus=16, gpus=2)
    assert machine.slots(FleetConfig(), ranks=1) == 2
    assert machine.slots(FleetConfig(gpus_per_run=0.25), ranks=1) == 8
    assert machine.slots(FleetConfig(gpus_per_run=2), ranks=2) == 1
    assert machine.slots(FleetConfig(gpus_per_run=4), ranks=4) == 0
    assert machine.slots(FleetConfig(device="cpu", cpus_per_run=3), ranks=1) == 5
    assert machine.slots(FleetConfig(device="cpu", gpus_per_run=4), ranks=4) == 4
    assert machine.slots(FleetConfig(max_concurrent_runs=1), ranks=1) == 1
    assert Machine(cpus=4, gpus=0).slots(FleetConfig(), ranks=1) == 4
    assert Machine(cpus=4, gpus=0).slots(FleetConfig(gpus_per_run=2), ranks=2) == 0


def test_points_of_a_path_are_estimated_on_the_report_splits() -> None:
    """40 images select, 80 report. Two points of the path are tasted and scored."""

    def images(*recipes: Any) -> float:
        plan = simulated(1, epochs=1, soup={"recipes": ["best", *recipes]})
        paces = {kind(run): RunTiming(step_s=0.0, score_image_s=1.0) for run in plan.runs}
        return seconds(plan, resolve(plan, facts(plan)), slots=1, paces=paces)

    more = images({"wise_ft": {"alphas": [0.0, 0.5]}}) - images()
    assert more == 3 * 40 + 80 + 2 * 80, "tastes, the soup, the points"


def test_each_run_takes_the_first_free_slot() -> None:
    assert makespan([3, 1, 1, 1], slots=2) == 3
    assert makespan([1, 1, 1], slots=2) == 2
    assert makespan([], slots=2) == 0


def test_sizes_are_readable() -> None:
    assert [size(n) for n in (12, 2048, 3 * 2**20, 5 * 2**30)] == [
        "12 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]


@pytest.mark.parametrize(("every", "count"), [(1, 3), (2, 1), ("15 steps", 2)])
def test_rounds_are_counted(every: int | str, count: int) -> None:
    of = simulated(3, epochs=4, merge={"mode": "sync", "every": every})
    assert num_rounds(of, resolve(of, facts(of))) == count


def test_without_sync_there_are_no_rounds() -> None:
    assert (
        num_rounds(
            simulated(3),
            resolve(simulated(3), facts(simulated(3))),
        )
        == 0
    )


def test_merged_weights_need_storage(tmp_path: Path) -> None:
    separate, merged = (
        simulated(3, epochs=4, merge={"mode": mode, "method": "greedy"}) for mode in ("off", "sync")
    )
    less, more = (peak_bytes(of, resolve(of, facts(of)), 2) for of in (separate, merged))
    assert more - less == 2 * 4000


@pytest.mark.parametrize(("grace", "is_warned"), [("0", True), ("600", False), ("null", False)])
def test_a_grace_period_shorter_than_a_checkpoint_is_a_warning(
    folder: Path, grace: str, is_warned: bool
) -> None:
    few = ("base.trunk_epochs=0", "sweep.seeds=1")
    text = shown(plan_view(make_plan(small_experiment(folder, *few, f"fleet.grace_s={grace}"))))
    assert ("fleet.grace_s is 0, but a checkpoint takes" in text) is is_warned
