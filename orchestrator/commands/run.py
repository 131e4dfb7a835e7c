"""The verb `run`: drive one experiment from the command to the report.

    expand the runs -> lease -> new, the same, or another experiment? -> fleet -> driver -> report

Mistakes that the configuration alone shows are refused before a fleet starts or torch is imported.
An experiment without work left starts neither. If its soup or report is damaged, they are made
again.
"""

import json
import os
import platform
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from orchestrator import config, schedule
from orchestrator.config import Experiment, secrets
from orchestrator.driver.contents import (
    clear,
    read_experiment,
    read_state,
    refuse_lost_events,
    refuse_other_contents,
)
from orchestrator.driver.driver import Driver, refused_reason
from orchestrator.driver.inventory import damaged_files
from orchestrator.driver.lease import Lease, LeaseLost
from orchestrator.driver.ledger import Ledger
from orchestrator.driver.publish import Publisher, served_problem
from orchestrator.driver.signals import STOPPED, stop_signals_handled, stoppable
from orchestrator.experiment.identity import (
    added_runs,
    additions,
    check,
    grown_like,
    identity,
    kept_values,
    with_extensions,
    with_stored_values,
)
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.experiment.sweep import expand
from orchestrator.fleet.base import Fleet, LocalFleet
from orchestrator.report import format
from orchestrator.report.results import collect_results
from orchestrator.report.write import changed_report_files, report_files
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from workers.errors import UserError
from workers.storage.layout import CONFIG, ENV, LEASE, STAGED
from workers.storage.store import Store
from workers.text import one_line
from workers.types import Extended, WorkerConfig

_Say = Callable[[str], object]

DONE, BAD, PARTLY = 0, 2, 3
"""Exit codes of `run_experiment`; 1 is a bug of ours."""

LOCAL_LEASE_S = 300.0
"""Validity of a lease with a local fleet, which renews it whenever a step or a batch is over."""

RAY_LEASE_S = 60.0
"""Validity of a lease with a Ray fleet."""


@dataclass(frozen=True)
class Options:
    """Options of the command line that are not part of the configuration."""

    address: str = "local"
    """Ray cluster: local, auto or HOST:PORT."""
    fleet: Literal["ray", "local"] = "ray"
    extend: bool = False
    """Whether the experiment may gain runs, recipes and ensembles."""
    retry_failed: bool = False
    """Whether to try again what was given up."""
    take_over: bool = False
    """Whether to replace a driver that holds the lease."""
    plain: bool | None = None
    """Lines instead of a live table. None: lines unless stdout is a terminal."""


@dataclass(frozen=True)
class RunOutcome:
    """The end of a command that ran an experiment."""

    exit_code: int
    moment: Moment
    results: dict[str, Any] | None
    """Content of results.json. None: the command was stopped before the end."""
    worked: bool
    """False: the experiment was finished already."""
    repaired: tuple[str, ...] = ()
    """Files of a finished experiment that were written again."""


@dataclass(frozen=True)
class Begun:
    """An experiment that passed preflight before this command."""

    stored: Experiment
    extended: Extended | None
    """What this command adds. None: nothing."""


def run_experiment(experiment: Experiment, options: Options) -> RunOutcome:
    """Drive the experiment to its end, or until it is stopped.

    Whatever is decided under the lease is read under the lease.

    Raises:
        UserError: a mistake that the user can mend.
        StoreUnavailable: the store failed for longer than fleet.storage_patience.
    """
    store = Store(config.uri(experiment))
    stored = _stored(experiment, options, store)
    if stored.is_over and not _damage(stored.moment, store):
        return _nothing_to_do(stored.moment)
    refuse_other_contents(store, is_new=stored.is_empty)
    store.probe()
    ttl_s = LOCAL_LEASE_S if options.fleet == "local" else RAY_LEASE_S
    lease = Lease(store, owner=f"{socket.gethostname()}:{os.getpid()}", ttl_s=ttl_s)
    with stoppable():
        lease.acquire(options.take_over)
        try:
            return _run_holding(lease, experiment, options, store)
        except LeaseLost as error:
            raise UserError(str(error)) from error
        finally:
            lease.release()


@dataclass(frozen=True)
class _Stored:
    """The experiment of the command, and what the store holds of it."""

    moment: Moment
    is_empty: bool
    """Whether the store has no config.yaml."""
    begun: Begun | None
    retry_failed: bool

    @property
    def is_over(self) -> bool:
        if self.begun is None or self.begun.extended is not None:
            return False
        if self.retry_failed and self.moment.state.gave_up:
            return False
        return is_finished(self.moment)


def _stored(experiment: Experiment, options: Options, store: Store, say: _Say = print) -> _Stored:
    stored, begun = read_experiment(store), None
    state = read_state(store) if stored is not None else State()
    if stored is not None and state.preflight is not None:
        experiment = as_begun(experiment, stored, state.original, options.extend, say)
        begun = Begun(stored, extension(stored, experiment))
    moment = Moment(planned(experiment), state)
    return _Stored(moment, stored is None, begun, options.retry_failed)


def _run_holding(
    lease: Lease, experiment: Experiment, options: Options, store: Store
) -> RunOutcome:
    """Continue, begin, or repair, with the lease."""
    stored = _stored(experiment, options, store, say=lambda text: None)  # said already
    refuse_lost_events(store, stored.moment.state)
    store.remove_leftovers()
    store.delete(STAGED)
    if not stored.is_over or _is_to_be_made_again(stored.moment, store):
        return _run(options, stored.moment.expanded, store, lease, stored.begun)
    changed = changed_report_files(stored.moment, store)
    Publisher(store, lease).write_all(changed)
    return _nothing_to_do(stored.moment, repaired=tuple(changed))


def _damage(moment: Moment, store: Store) -> bool:
    """Whether a file that a finished experiment is read by is not what was written."""
    return _is_to_be_made_again(moment, store) or bool(changed_report_files(moment, store))


def _is_to_be_made_again(moment: Moment, store: Store) -> bool:
    """Whether a file is damaged that only orders can make."""
    return bool(served_damage(moment, store) or damaged_files(store, moment.state))


def served_damage(moment: Moment, store: Store) -> str:
    """What has happened to `soup/` since it was served. Empty: nothing."""
    return served_problem(store, moment.state.served, moment.state.soups)


def _nothing_to_do(moment: Moment, repaired: tuple[str, ...] = ()) -> RunOutcome:
    results = collect_results(moment)
    return RunOutcome(exit_code(moment), moment, results, worked=False, repaired=repaired)


def as_begun(
    experiment: Experiment,
    stored: Experiment,
    original: dict[str, Any] | None,
    extend: bool,
    say: _Say = print,
) -> Experiment:
    """The experiment with its stored values, and with what it gained since it began.

    Refuses a changed one, and reports the values kept and what was gained.
    """
    merged = with_extensions(with_stored_values(experiment, stored), stored, original)
    check(identity(stored), merged, extend=extend)
    config.import_recipes(merged)  # its own, and those that the store names
    if original is not None:
        if gained := additions(grown_like(merged, experiment), merged):
            text = (
                f"{experiment.name} now has {format.listing(gained)} (added with --extend); write "
                "this into the file to make it part of it"
            )
            say(one_line(text))
        experiment = grown_like(experiment, merged)
    if kept := kept_values(experiment, merged):
        text = f"{experiment.name} keeps the values that it began with: {'; '.join(kept)}"
        say(one_line(text))
    return merged


def extension(stored: Experiment, experiment: Experiment) -> Extended | None:
    """The event of what the experiment gains. None: nothing."""
    if not additions(stored, experiment):
        return None
    return Extended(before=identity(stored), runs=added_runs(stored, experiment))


def planned(experiment: Experiment) -> ExpandedExperiment:
    """The experiment with its runs expanded."""
    return ExpandedExperiment(experiment, expand(experiment), ranks=config.num_ranks(experiment))


def is_finished(moment: Moment) -> bool:
    """Whether the ledger is complete: nothing is due, and nothing is left to decide."""
    if moment.state.finished is None:
        return False
    return schedule.is_over(moment) and not schedule.decisions(moment, now=0.0)


def exit_code(moment: Moment) -> int:
    """3 if a run failed, an order was given up or no soup is served; 4 if it is not finished."""
    if moment.state.finished is None:
        return STOPPED
    statuses = {moment.phase_of(run) for run in moment.expanded.runs}
    serves_nothing = moment.state.served is None or moment.state.served.soup is None
    return PARTLY if "failed" in statuses or serves_nothing or moment.state.gave_up else DONE


def _run(
    options: Options,
    expanded: ExpandedExperiment,
    store: Store,
    lease: Lease,
    begun: Begun | None,
) -> RunOutcome:
    if begun is None:
        lease.check()
        clear(store)
    try:
        fleet = open_fleet(expanded.experiment, options, lease)
    except UserError:
        _undo(store, lease, begun)
        raise
    try:
        return _drive(expanded, store, lease, fleet, options, begun)
    finally:
        fleet.close()


def _drive(
    expanded: ExpandedExperiment,
    store: Store,
    lease: Lease,
    fleet: Fleet,
    options: Options,
    begun: Begun | None,
) -> RunOutcome:
    from orchestrator.report.terminal.live import open_view

    about = {
        CONFIG: config.public_dump(expanded.experiment).encode(),
        ENV: _environment(options, store).encode(),
    }
    with open_view(options.plain) as view:
        driver = Driver(
            expanded,
            store,
            Ledger(store),
            lease,
            fleet,
            watch=view.update,
            retry_failed=options.retry_failed,
            damage=damaged_files,
        )
        with stop_signals_handled(driver):
            if begun is not None and begun.extended is not None:
                # Before config.yaml: a driver that is killed in between can be extended again.
                driver.record(begun.extended)
            driver.publish(about)
            state = driver.run()
    refused = refused_reason(state)
    if refused is not None:
        _undo(store, lease, begun)
        raise UserError(refused)
    if driver.stop_reason is not None:
        return RunOutcome(STOPPED, driver.moment, None, worked=True)
    driver.publish(report_files(driver.moment, store))
    driver.finish()
    driver.publish(report_files(driver.moment, store))
    results = collect_results(driver.moment)
    return RunOutcome(exit_code(driver.moment), driver.moment, results, worked=True)


def _undo(store: Store, lease: Lease, begun: Begun | None) -> None:
    """Undo what was written for an experiment, or for its extension, that preflight refused."""
    if begun is not None:
        Publisher(store, lease).write(CONFIG, config.public_dump(begun.stored).encode())
        return
    clear(store)
    store.delete(LEASE)
    if store.local_root is not None and not store.list():
        store.local_root.rmdir()


# Fleets


def open_fleet(experiment: Experiment, options: Options, lease: Lease) -> Fleet:
    """The fleet that `--fleet` names, ready to take orders."""
    if options.fleet == "local":
        return _local_fleet(experiment, lease)
    return _ray_fleet(experiment, options)


def _local_fleet(experiment: Experiment, lease: Lease) -> Fleet:
    """It works in the driver's own thread, so its progress is when the lease can be renewed. A
    thread for that would renew it while the driver is stuck."""
    from workers.context import WorkerContext, cuda_is_available
    from workers.dispatch import perform_safely

    if config.num_ranks(experiment) > 1:
        raise UserError(
            f"--fleet local trains with one rank, but fleet.gpus_per_run is "
            f"{experiment.fleet.gpus_per_run:g}; set it to 1, or use --fleet ray"
        )
    cores = os.cpu_count() or 1
    if experiment.fleet.cpus_per_run > cores:
        raise UserError(
            f"fleet.cpus_per_run is {experiment.fleet.cpus_per_run}, but this machine has {cores} "
            "CPUs; lower it, or use --fleet ray on a cluster"
        )
    asked = experiment.fleet.device
    if asked == "cuda" and not cuda_is_available():
        raise UserError("fleet.device is cuda, but torch finds no GPU here; set fleet.device=cpu")
    device: Literal["cpu", "cuda"] = "cpu"
    if asked != "cpu" and cuda_is_available():
        device = "cuda"
    os.environ.update(secrets.environment(experiment.fleet.env))
    worker = WorkerContext(config.worker_config(experiment, device))
    worker.progress.on_touch = lease.keep
    return LocalFleet(lambda order, att: perform_safely(worker, order, att), worker.progress)


def _ray_fleet(experiment: Experiment, options: Options) -> Fleet:
    if options.address == "local":
        # Read when ray is imported: its uv hook would rebuild the environment for every worker.
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    from orchestrator.fleet.ray import RayFleet, open_cluster

    worker_config: WorkerConfig = open_cluster(experiment, options.address)
    return RayFleet(worker_config, experiment.fleet)


def _environment(options: Options, store: Store) -> str:
    """Content of env.json: software and machine, on which the bytes of a soup may depend, and all
    commands that drove the experiment."""
    packages = (
        "soupfleet",
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "ray",
        "numpy",
        "pyarrow",
    )
    facts = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "host": socket.gethostname(),
        "command": _command(),
        "commands": [*_earlier_commands(store), _command()],
        "fleet": options.fleet,
        "versions": {name: _version(name) for name in packages},
    }
    return json.dumps(facts, indent=2) + "\n"


def _command() -> list[str]:
    """The arguments of this command without their secrets."""
    return secrets.public_arguments(sys.argv)


def _earlier_commands(store: Store) -> list[list[str]]:
    """The commands in env.json; older versions kept the latest alone."""
    try:
        facts = json.loads(store.read(ENV))
    except (FileNotFoundError, ValueError):  # damaged: it is written anew
        return []
    if not isinstance(facts, dict):
        return []
    commands: list[list[str]] = facts.get("commands", [facts.get("command", [])])
    return [secrets.public_arguments(command) for command in commands]


def _version(package: str) -> str:
    """The installed version; our own package is not installed in a Ray job."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
