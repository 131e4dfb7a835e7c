"""The verb `plan`: runs, resources, storage and time of an experiment, without starting it.

experiment -> preflight on a temporary store -> facts  -> runs, steps, bytes
              a few real training steps      -> timing -> seconds
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator import config
from orchestrator.commands.estimate import STARTUP_S, kind, num_rounds, peak_bytes, seconds
from orchestrator.commands.run import planned
from orchestrator.config import Experiment
from orchestrator.config.sections import FleetConfig
from orchestrator.experiment.resolved import ExpandedExperiment, ResolvedExperiment, resolve
from orchestrator.report import format
from orchestrator.report.terminal.tables import MAX_RUNS
from orchestrator.schedule import preparation
from workers.context import WorkerContext, num_gpus
from workers.errors import UserError
from workers.storage.store import Store
from workers.types import PreflightResult, RunSpec, RunTiming, model_key

_PROBE = ".probe-plan"
PROBE_BYTES = 16 << 20
"""Bytes written to measure the storage."""
MAX_NAMED = 10
"""Most corrupt images that are listed by name."""


@dataclass(frozen=True)
class Machine:
    """Resources of this machine."""

    cpus: int
    gpus: int

    def slots(self, spec: FleetConfig, ranks: int) -> int:
        """Runs that fit at the same time; 0 if a single one does not fit."""
        bundles = self.cpus // spec.cpus_per_run
        if spec.device == "cuda" or (spec.device == "auto" and (self.gpus or ranks > 1)):
            bundles = min(bundles, int(self.gpus / min(1.0, spec.gpus_per_run)))
        return min(bundles // ranks, spec.max_concurrent_runs or bundles)


@dataclass(frozen=True)
class Plan:
    """Work and costs of an experiment on this machine."""

    expanded: ExpandedExperiment
    resolved: ResolvedExperiment
    machine: Machine
    device: Literal["cpu", "cuda"]
    slots: int
    """Runs at the same time. 0: a single one does not fit."""
    paces: Mapping[str, RunTiming]
    """Timing by kind of run."""
    timed_steps: int
    """Training steps that were timed."""
    storage_bytes: int
    """Bytes at the peak."""
    free_bytes: int | None
    """Free bytes of the storage. None: unknown."""
    checkpoint_s: float | None
    """Seconds to write the largest training checkpoint. None: not measured, because fleet.grace_s
    follows it."""

    @property
    def summary(self) -> dict[str, Any]:
        """Content of `--json`. steps_per_run is a list if runs differ; checkpoint_bytes is that of
        the largest model; storage_bytes is the peak."""
        steps = [self.resolved.num_steps[run.id] for run in self.expanded.runs]
        models = self.resolved.preflight.models.values()
        return {
            "runs": len(steps),
            "steps_per_run": steps[0] if len(set(steps)) == 1 else steps,
            "slots": self.slots,
            "checkpoint_bytes": max(model.checkpoint_bytes for model in models),
            "storage_bytes": self.storage_bytes,
            "seconds": round(seconds(self.expanded, self.resolved, self._width, self.paces), 1),
        }

    @property
    def _width(self) -> int:
        return max(1, self.slots)


def make_plan(experiment: Experiment) -> Plan:
    """Check the data and the models, and time a few training steps on this machine.

    Nothing is left behind.

    Raises:
        UserError: `run` would refuse the experiment.
    """
    expanded = planned(experiment)
    store = Store(config.uri(experiment))
    _require_writable(store)
    machine = Machine(cpus=len(os.sched_getaffinity(0)), gpus=num_gpus())
    device = _device(experiment, machine)
    with tempfile.TemporaryDirectory(prefix="soupfleet-plan-") as folder:
        worker_config = config.worker_config(experiment, device).model_copy(update={"uri": folder})
        worker = WorkerContext(worker_config)
        resolved = resolve(expanded, _without_warnings_of(folder, _preflight(expanded, worker)))
        _require_steps(expanded, resolved)
        paces, timed_steps = _time_kinds(expanded, resolved, worker)
    slots = machine.slots(experiment.fleet, expanded.ranks)
    return Plan(
        expanded,
        resolved,
        machine,
        device,
        slots,
        paces,
        timed_steps,
        storage_bytes=peak_bytes(expanded, resolved, max(1, slots)),
        free_bytes=store.free_bytes(),
        checkpoint_s=_checkpoint_s(store, resolved)
        if experiment.fleet.grace_s is not None
        else None,
    )


def _checkpoint_s(store: Store, resolved: ResolvedExperiment) -> float:
    """Estimated from a small file that is written and deleted."""
    num_bytes = max(model.checkpoint_bytes for model in resolved.preflight.models.values())
    probe = bytes(min(num_bytes, PROBE_BYTES))
    began = time.perf_counter()
    if store.local_root is None:
        store.write(_PROBE, probe)
        store.delete(_PROBE)
    else:
        with tempfile.NamedTemporaryFile(dir=_existing(store.local_root)) as file:
            file.write(probe)
            os.fsync(file.fileno())
    return (time.perf_counter() - began) * num_bytes / len(probe)


def _require_writable(store: Store) -> None:
    """Check that the storage is writable. A local folder is not created; elsewhere a marker file is
    written and deleted."""
    if store.local_root is None:
        store.probe()
        return
    parent = _existing(store.local_root)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(
            f"storage {store} cannot be written to: {parent} is not a writable folder; give a "
            "folder or bucket that is writable from here and from every node"
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _device(experiment: Experiment, machine: Machine) -> Literal["cpu", "cuda"]:
    asked = experiment.fleet.device
    if asked == "cpu" or not machine.gpus:
        return "cpu"
    return "cuda"


def _preflight(expanded: ExpandedExperiment, worker: WorkerContext) -> PreflightResult:
    from workers.preflight import preflight

    try:
        (event,) = preflight(preparation.preflight_order(expanded), 1, worker)
    except OSError as error:  # a fleet would try again
        raise UserError(f"the images cannot be read: {error}; check data.root") from error
    assert event.kind == "preflighted"
    return event.facts


def _without_warnings_of(folder: str, facts: PreflightResult) -> PreflightResult:
    """The facts without warnings about the disk of the temporary store."""
    warnings = tuple(warning for warning in facts.warnings if folder not in warning)
    return facts.model_copy(update={"warnings": warnings})


def _require_steps(expanded: ExpandedExperiment, resolved: ResolvedExperiment) -> None:
    for run in expanded.runs:
        if not resolved.num_steps[run.id]:
            raise UserError(
                f"data.train: {resolved.num_images[run.id]} training images are too few for "
                f"{expanded.ranks} ranks, which need two each; add images or lower "
                "fleet.gpus_per_run"
            )


def _time_kinds(
    expanded: ExpandedExperiment, resolved: ResolvedExperiment, worker: WorkerContext
) -> tuple[dict[str, RunTiming], int]:
    """Timing of every kind of run, and the number of timed steps.

    A gang is assumed to be as fast as a single rank.
    """
    from workers.training.timing import time_run

    stages = [stage for plan in resolved.plans for stage in plan.stages]
    firsts: dict[str, RunSpec] = {}
    for run in (*expanded.runs, *stages):
        firsts.setdefault(kind(run), run)
    paces = {key: time_run(run, worker) for key, run in firsts.items()}
    return paces, sum(pace.num_steps for pace in paces.values())


# View


def plan_view(plan: Plan) -> RenderableType:
    """Runs, resources, data, storage, time, and warnings."""
    experiment = plan.expanded.experiment
    head = Text(f"{experiment.name}: plan; nothing was started", style="bold")
    head.append(f"  {config.shown_uri(experiment)}", style="dim")
    lines = [Text(line) for line in _lines(plan)]
    warnings = [Text(f"Warning: {text}", style="yellow") for text in _warnings(plan)]
    return Group(head, _runs_table(plan), *lines, *warnings)


def _runs_table(plan: Plan) -> Table:
    table = Table(pad_edge=False)
    for name in ("run", "params", "model"):
        table.add_column(name, overflow="fold")
    for name in ("epochs", "steps"):
        table.add_column(name, justify="right")
    stages = [stage for base in plan.resolved.plans for stage in base.stages]
    runs = [*stages, *plan.expanded.runs]
    for run in runs[:MAX_RUNS]:
        name = run.id if run.role == "member" else f"{run.id} (base)"
        steps = str(plan.resolved.num_steps[run.id])
        cells = [name, format.params(run.params), run.model.name, str(run.train.epochs), steps]
        table.add_row(*map(escape, cells))
    if len(runs) > MAX_RUNS:
        table.add_row("", f"and {len(runs) - MAX_RUNS} more", style="dim")
    return table


def _lines(plan: Plan) -> Iterator[str]:
    facts, machine, summary = plan.resolved.preflight, plan.machine, plan.summary
    yield f"Data: {len(facts.classes)} classes; images: {format.image_counts(facts)}."
    for cohort in plan.resolved.cohorts:
        model, name = facts.models[model_key(cohort.model)], plan.resolved.cohort_names[cohort.id]
        yield f"Model: {name}, {model.num_parameters / 1e6:.2f} million parameters."
    fleet = plan.expanded.experiment.fleet
    gpus = f" and {fleet.gpus_per_run:g} GPU" if plan.device == "cuda" else ""
    yield (
        f"Slots: {plan.slots} at a time on this machine ({machine.cpus} CPUs, {machine.gpus} GPUs);"
        f" a run takes {plan.expanded.ranks * fleet.cpus_per_run} CPU{gpus}."
    )
    free = "" if plan.free_bytes is None else f", of {size(plan.free_bytes)} free"
    yield (
        f"Storage: {size(plan.storage_bytes)} at the peak{free}; a training checkpoint is "
        f"{size(summary['checkpoint_bytes'])}. Checkpoints that "
        f"soup.ingredients={_ingredients(plan)} cannot choose are deleted."
    )
    yield from _round_lines(plan)
    yield from _time_lines(plan, summary["seconds"])


def _round_lines(plan: Plan) -> Iterator[str]:
    """Number of sync rounds, and the bytes that they write."""
    count = num_rounds(plan.expanded, plan.resolved)
    if not count:
        return
    models = plan.resolved.preflight.models
    largest = max(models[model_key(cohort.model)].model_bytes for cohort in plan.resolved.cohorts)
    yield (
        f"Rounds: {count}. Each writes merged weights of {size(largest)}, which every node reads "
        f"once; {size(count * largest)} in all, of which the latest are kept."
    )


def _ingredients(plan: Plan) -> str:
    ingredients = plan.expanded.experiment.soup.ingredients
    return ingredients if isinstance(ingredients, str) else str(list(ingredients))


def _time_lines(plan: Plan, total_s: float) -> Iterator[str]:
    may_stop_early = any(run.train.patience is not None for run in plan.expanded.runs)
    bound = "; less if train.patience ends runs early" if may_stop_early else ""
    yield f"Time: about {format.duration(total_s)}{bound}."
    for run in _one_of_each_kind(plan):
        pace = plan.paces[kind(run)]
        yield (
            f"  A step of {run.model.name} with {run.train.batch_size * run.train.grad_accum_steps}"
            f" images took {pace.step_s:.3f} s here, scoring an image "
            f"{1000 * pace.score_image_s:.1f} ms."
        )
    yield (
        f"  Estimated from {plan.timed_steps} timed steps on one otherwise idle {plan.device} "
        f"slot, {STARTUP_S:.0f} s for the start of Ray, and the most tastes that recipes can need. "
        "Anytime soups during training and slots that share memory take longer."
    )


def _one_of_each_kind(plan: Plan) -> list[RunSpec]:
    return list({kind(run): run for run in reversed(plan.expanded.runs)}.values())


def _warnings(plan: Plan) -> Iterator[str]:
    facts = plan.resolved.preflight
    yield from facts.warnings
    if facts.corrupt:
        names = ", ".join(facts.corrupt[:MAX_NAMED])
        more = f" and {len(facts.corrupt) - MAX_NAMED} more" * (len(facts.corrupt) > MAX_NAMED)
        yield f"{len(facts.corrupt)} images do not decode and are left out: {names}{more}"
    if not plan.slots:
        yield "not even one run fits this machine; the time is for one slot of a larger machine"
    grace_s = plan.expanded.experiment.fleet.grace_s
    if grace_s is not None and plan.checkpoint_s is not None and grace_s < plan.checkpoint_s:
        yield (
            f"fleet.grace_s is {grace_s:g}, but a checkpoint takes about {plan.checkpoint_s:.0f} s "
            "to be written, so runs that are stopped lose what they did since the last one; leave "
            "it out, and it follows the measured time"
        )
    if plan.free_bytes is not None and plan.free_bytes < plan.storage_bytes:
        yield (
            f"storage has {size(plan.free_bytes)} free, the peak needs {size(plan.storage_bytes)}"
        )


def size(num_bytes: float) -> str:
    """A size as text, such as `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"
