"""The verb `run`: drive one experiment from the command to the report.

    expand the runs -> new, the same, or another experiment? -> lease -> fleet -> driver -> report

Mistakes that the configuration alone shows are refused before a fleet starts or torch is imported.
An experiment without work left starts neither.
"""

import json
import os
import platform
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from orchestrator import config, schedule
from orchestrator.config import Experiment, secrets
from orchestrator.driver.driver import Driver, refused_reason
from orchestrator.driver.inventory import damaged_files
from orchestrator.driver.lease import Lease, LeaseLost
from orchestrator.driver.ledger import Ledger
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
from orchestrator.report.write import write_report
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from workers.errors import UserError, first_line
from workers.storage.layout import CONFIG, ENV, LEASE, STORE_ENTRIES
from workers.storage.store import Store
from workers.text import one_line
from workers.types import Extended, WorkerConfig

DONE, BAD, PARTLY = 0, 2, 3
"""Exit codes of `run_experiment`; 1 is a bug of ours."""

LOCAL_LEASE_S = 3600.0
"""Validity of a lease with a local fleet, which can renew it only between epochs."""

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


@dataclass(frozen=True)
class Begun:
    """An experiment that passed preflight before this command."""

    stored: Experiment
    extended: Extended | None
    """What this command adds. None: nothing."""


def run_experiment(experiment: Experiment, options: Options) -> RunOutcome:
    """Drive the experiment to its end, or until it is stopped.

    Raises:
        UserError: a mistake that the user can mend.
    """
    store = Store(config.uri(experiment))
    stored = read_experiment(store)
    state = fold(Ledger(store).replay()) if stored is not None else State()
    has_begun = stored is not None and state.preflight is not None
    extended = None
    if stored is not None and has_begun:
        experiment = as_begun(experiment, stored, state.original, extend=options.extend)
        extended = extension(stored, experiment)
    expanded = planned(experiment)
    moment = Moment(expanded, state)
    if has_begun and extended is None and is_finished(moment) and not damaged_files(store, state):
        return RunOutcome(exit_code(moment), moment, _results(store), worked=False)
    ttl_s = LOCAL_LEASE_S if options.fleet == "local" else RAY_LEASE_S
    if stored is None:
        _refuse_other_contents(store)
    store.probe()
    lease = Lease(store, owner=f"{socket.gethostname()}:{os.getpid()}", ttl_s=ttl_s)
    with stoppable():
        lease.acquire(options.take_over)
        try:
            begun = Begun(stored, extended) if stored is not None and has_begun else None
            return _run(experiment, options, expanded, store, lease, begun)
        except LeaseLost as error:
            raise UserError(str(error)) from error
        finally:
            lease.release()


def as_begun(
    experiment: Experiment, stored: Experiment, original: dict[str, Any] | None, extend: bool
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
            print(one_line(text))
        experiment = grown_like(experiment, merged)
    if kept := kept_values(experiment, merged):
        text = f"{experiment.name} keeps the values that it began with: {'; '.join(kept)}"
        print(one_line(text))
    return merged


def extension(stored: Experiment, experiment: Experiment) -> Extended | None:
    """The event of what the experiment gains. None: nothing."""
    if not additions(stored, experiment):
        return None
    return Extended(before=identity(stored), runs=added_runs(stored, experiment))


def read_experiment(store: Store) -> Experiment | None:
    """The experiment in the store. None: it has no config.yaml."""
    text = _text_of(store)
    return None if text is None else config.read(text, f"{CONFIG} in {store}")


def _text_of(store: Store) -> str | None:
    """The text of config.yaml. None: it is missing."""
    try:
        return store.read(CONFIG).decode() if store.exists(CONFIG) else None
    except UnicodeDecodeError as error:
        raise UserError(f"{CONFIG} in {store} is not text ({error}); restore it") from error
    except OSError as error:
        raise UserError(
            f"storage {store} does not answer ({first_line(error)}); check its name, the "
            "credentials and the network"
        ) from error


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
    experiment: Experiment,
    options: Options,
    expanded: ExpandedExperiment,
    store: Store,
    lease: Lease,
    begun: Begun | None,
) -> RunOutcome:
    if begun is None:
        _clear(store)
    try:
        fleet = open_fleet(experiment, options)
    except UserError:
        _undo(store, begun)
        raise
    try:
        if begun is not None and begun.extended is not None:
            # Before config.yaml: a driver that is killed in between can be extended again.
            Ledger(store).append([begun.extended])
        store.write(CONFIG, config.public_dump(experiment).encode())
        store.write(ENV, _environment(options, store).encode())
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

    with open_view(options.plain) as view:
        driver = Driver(
            expanded,
            store,
            Ledger(store),
            lease,
            fleet,
            watch=view.update,
        )
        with stop_signals_handled(driver):
            state = driver.run()
    refused = refused_reason(state)
    if refused is not None:
        _undo(store, begun)
        raise UserError(refused)
    if driver.stop_reason is not None:
        return RunOutcome(STOPPED, driver.moment, None, worked=True)
    write_report(driver.moment, store)
    driver.finish()
    results = write_report(driver.moment, store)
    return RunOutcome(exit_code(driver.moment), driver.moment, results, worked=True)


def _undo(store: Store, begun: Begun | None) -> None:
    """Undo what was written for an experiment, or for its extension, that preflight refused."""
    if begun is not None:
        store.write(CONFIG, config.dump(begun.stored).encode())
        return
    _clear(store)
    store.delete(LEASE)
    if store.local_root is not None and not store.list():
        store.local_root.rmdir()


def _clear(store: Store) -> None:
    """Delete all files of an experiment that did not pass preflight, except the lease."""
    for name in STORE_ENTRIES - {LEASE}:
        store.delete(name)


def _refuse_other_contents(store: Store) -> None:
    """Refuse a folder with files that are not ours: it is cleared if the experiment is refused."""
    others = sorted({path.partition("/")[0] for path in store.list()} - STORE_ENTRIES)
    if others:
        raise UserError(
            f"{store} is not an experiment and contains {others[0]!r}; give the experiment a "
            "folder of its own with --name or --storage"
        )


def _results(store: Store) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(store.read("results.json"))
    return results


# Fleets


def open_fleet(experiment: Experiment, options: Options) -> Fleet:
    """The fleet that `--fleet` names, ready to take orders."""
    return _local_fleet(experiment) if options.fleet == "local" else _ray_fleet(experiment, options)


def _local_fleet(experiment: Experiment) -> Fleet:
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
    commands: list[list[str]] = facts.get("commands", [facts.get("command", [])])
    return [secrets.public_arguments(command) for command in commands]


def _version(package: str) -> str:
    """The installed version; our own package is not installed in a Ray job."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
