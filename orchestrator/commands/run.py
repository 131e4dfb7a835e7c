"""A session: one driver's life with one experiment, from the command to the report.

    plan the program -> is it new, the same, or another one? -> lease -> fleet -> drive -> report

What the configuration alone shows, and whether there is anything left to do, is settled before a
fleet starts or torch is imported.
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
from orchestrator.config import Experiment
from orchestrator.driver.driver import Driver, refused_reason
from orchestrator.driver.lease import Lease, LeaseLost
from orchestrator.driver.ledger import Ledger
from orchestrator.driver.signals import STOPPED, stop_signals_handled, stoppable
from orchestrator.experiment.identity import check, identity
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.experiment.sweep import expand
from orchestrator.fleet.base import Fleet, LocalFleet
from orchestrator.report.write import write_report
from orchestrator.schedule.training import status
from orchestrator.state.reducers import fold
from orchestrator.state.state import State
from workers.errors import UserError
from workers.storage.layout import CONFIG, ENV, LEASE, STORE_ENTRIES
from workers.storage.store import Store
from workers.types import WorkerConfig

DONE, BAD, PARTLY = 0, 2, 3
"""Exit codes of `run`; 1 is left to bugs of ours."""

LOCAL_LEASE_S = 3600.0
"""A local fleet looks at its lease between two epochs only."""


@dataclass(frozen=True)
class Options:
    """What the command line adds to a configuration."""

    address: str = "local"
    fleet: Literal["ray", "local"] = "ray"
    extend: bool = False
    take_over: bool = False
    plain: bool | None = None


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    program: ExpandedExperiment
    state: State
    results: dict[str, Any] | None
    worked: bool


def run(experiment: Experiment, options: Options) -> Outcome:
    """Drive the experiment as far as it goes. Raises UserError for what the user must mend."""
    store = Store(config.uri(experiment))
    known = read_experiment(store)
    state = fold(Ledger(store).replay()) if known is not None else State()
    has_begun = known is not None and state.facts is not None
    if known is not None and has_begun:
        check(identity(known), experiment, extend=options.extend)
    program = planned(experiment)
    if has_begun and is_finished(program, state):
        return Outcome(exit_code(program, state), program, state, _results(store), worked=False)
    ttl_s = LOCAL_LEASE_S if options.fleet == "local" else 60.0
    if known is None:
        _refuse_strangers(store)
    store.probe()
    lease = Lease(store, owner=f"{socket.gethostname()}:{os.getpid()}", ttl_s=ttl_s)
    with stoppable():
        lease.acquire(options.take_over)
        try:
            return _run(experiment, options, program, store, lease, is_new=not has_begun)
        except LeaseLost as error:
            raise UserError(str(error)) from error
        finally:
            lease.release()


def read_experiment(store: Store) -> Experiment | None:
    """The experiment that lies there, if any."""
    if not store.exists(CONFIG):
        return None
    return config.read(store.read(CONFIG).decode(), f"{CONFIG} in {store}")


def planned(experiment: Experiment) -> ExpandedExperiment:
    """The experiment with its runs expanded."""
    return ExpandedExperiment(experiment, expand(experiment), ranks=config.num_ranks(experiment))


def is_finished(program: ExpandedExperiment, state: State) -> bool:
    """Every event that will ever be is in the ledger."""
    if state.finished is None:
        return False
    return schedule.is_over(program, state) and not schedule.decisions(program, state, now=0.0)


def exit_code(program: ExpandedExperiment, state: State) -> int:
    if state.finished is None:
        return STOPPED
    ends = {status(program, state, run) for run in program.runs}
    nothing = state.served is None or state.served.soup is None
    return PARTLY if "failed" in ends or nothing or state.gave_up else DONE


def _run(
    experiment: Experiment,
    options: Options,
    program: ExpandedExperiment,
    store: Store,
    lease: Lease,
    is_new: bool,
) -> Outcome:
    if is_new:
        _clear(store)
    try:
        fleet = open_fleet(experiment, options)
    except UserError:
        _take_back(store, is_new)
        raise
    try:
        store.write(CONFIG, config.dump(experiment).encode())
        store.write(ENV, _environment(options).encode())
        return _drive(program, store, lease, fleet, options, is_new)
    finally:
        fleet.close()


def _drive(
    program: ExpandedExperiment,
    store: Store,
    lease: Lease,
    fleet: Fleet,
    options: Options,
    is_new: bool,
) -> Outcome:
    from orchestrator.report.terminal.live import open_view

    with open_view(options.plain) as view:
        driver = Driver(
            program,
            store,
            Ledger(store),
            lease,
            fleet,
            watch=lambda state, events, pulses, waiting: view.update(
                program, state, events, pulses, waiting
            ),
        )
        with stop_signals_handled(driver):
            state = driver.run()
    refused = refused_reason(state)
    if refused is not None:
        _take_back(store, is_new)
        raise UserError(refused)
    if driver.stop_reason is not None:
        return Outcome(STOPPED, program, state, None, worked=True)
    write_report(program, driver.state, store)
    state = driver.finish()
    results = write_report(program, state, store)
    return Outcome(exit_code(program, state), program, state, results, worked=True)


def _take_back(store: Store, is_new: bool) -> None:
    """An experiment that was refused before it began leaves nothing behind."""
    if not is_new:
        return
    _clear(store)
    store.delete(LEASE)
    if store.local_root is not None and not store.list():
        store.local_root.rmdir()


def _clear(store: Store) -> None:
    """What an attempt left that never came past preflight; the lease stays."""
    for name in STORE_ENTRIES - {LEASE}:
        store.delete(name)


def _refuse_strangers(store: Store) -> None:
    """A folder of something else must not become an experiment, let alone be cleared for one."""
    strangers = sorted({path.partition("/")[0] for path in store.list()} - STORE_ENTRIES)
    if strangers:
        raise UserError(
            f"{store} is no experiment and holds {strangers[0]!r}; give the experiment a folder of "
            "its own with --name or --storage"
        )


def _results(store: Store) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(store.read("results.json"))
    return results


# Fleets


def open_fleet(experiment: Experiment, options: Options) -> Fleet:
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
    os.environ.update(experiment.fleet.env)
    worker = WorkerContext(config.worker_config(experiment, device))
    return LocalFleet(lambda order, att: perform_safely(worker, order, att), worker.progress)


def _ray_fleet(experiment: Experiment, options: Options) -> Fleet:
    if options.address == "local":
        # Ray reads it when imported: its uv hook would rebuild the environment for every worker.
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    from orchestrator.fleet.ray import RayFleet, open_cluster

    setting: WorkerConfig = open_cluster(experiment, options.address)
    return RayFleet(setting, experiment.fleet)


def _environment(options: Options) -> str:
    """env.json: what the bits may depend on, for whoever wants them again."""
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
        "command": sys.argv,
        "fleet": options.fleet,
        "versions": {name: _version(name) for name in packages},
    }
    return json.dumps(facts, indent=2) + "\n"


def _version(package: str) -> str:
    """A Ray job brings our code along without installing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
