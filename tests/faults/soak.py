"""Soak: the tiny experiment under seeded trouble, compared with the same experiment left in peace.

    scenario --trouble--> experiment --to its end--> Outcome: lost? other bytes? tracebacks? leaks?

A scenario ends when its experiment has ended, with the same command repeated after every kill.
"""

import contextlib
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ExitStatus, ForkServer
from workers.storage.store import Store

LEFTOVERS = ("**/.*.tmp", "**/.probe-*", "driver.json")
"""Files that nothing needs after the end of an experiment."""


@dataclass
class Outcome:
    """Counts of one or many scenarios."""

    experiments: int = 0
    injected: int = 0
    """Kills, freezes, failing periods, changed files."""
    lost: int = 0
    """Experiments that did not end with a served soup."""
    other_bytes: int = 0
    """Experiments that served other bytes than without trouble."""
    silent: int = 0
    """Changed files that `verify` did not name, or that were used."""
    tracebacks: int = 0
    leaks: int = 0
    """Processes and temporary files that were left."""

    def __add__(self, other: "Outcome") -> "Outcome":
        names = [field.name for field in fields(self)]
        return Outcome(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.other_bytes or self.silent or self.tracebacks or self.leaks)


class Soak:
    """The folders, drivers and expected bytes that scenarios share; a context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count()
        self._servers = contextlib.ExitStack()

    def __enter__(self) -> "Soak":
        self.server = self._servers.enter_context(ForkServer())
        self.other_server = self._servers.enter_context(ForkServer())
        self.peaceful = self.folder()
        status = self.run(self.peaceful)
        assert status.code == 0, log_of(self.peaceful)
        self.num_writes = status.writes
        self.served = tiny_experiment.served(store_of(self.peaceful))
        self._served_by: dict[tuple[str, ...], dict[str, bytes]] = {(): self.served}
        return self

    def served_by(self, *overrides: str) -> dict[str, bytes]:
        """The served files of the experiment with these overrides, on Ray without trouble."""
        if overrides not in self._served_by:
            folder = self.folder()
            with tiny_experiment.Command(folder, *overrides) as command:
                assert command.wait(300) == 0, command.output
            self._served_by[overrides] = tiny_experiment.served(store_of(folder))
        return self._served_by[overrides]

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    def folder(self) -> Path:
        folder = self._root / f"{next(self._numbers):05d}"
        folder.mkdir(parents=True)
        return folder

    def copy(self, folder: Path) -> Path:
        """A copy of an experiment, in a folder of its own."""
        target = self.folder()
        shutil.copytree(folder / "runs", target / "runs")
        return target

    def run(self, folder: Path, *options: str, **arguments: object) -> ExitStatus:
        return self.server.run(driver_run(folder, *options, **arguments))

    def judge(
        self,
        folder: Path,
        code: int,
        injected: int,
        served: dict[str, bytes] | None = None,
    ) -> Outcome:
        """The outcome of an experiment that ended with this exit code. `served` are the files that
        it should serve. None: those of the experiment in one process."""
        outcome = Outcome(experiments=1, injected=injected, tracebacks=num_tracebacks(folder))
        if code != 0:
            outcome.lost = 1
            return outcome
        outcome.other_bytes = int(
            tiny_experiment.served(store_of(folder)) != (served or self.served)
        )
        outcome.leaks = len(leftovers(folder))
        return outcome


def driver_run(folder: Path, *options: str, **arguments: object) -> DriverRun:
    """The command `run` for the experiment in a folder; its output goes to a log beside it."""
    config, log = str(tiny_experiment.config_file(folder)), str(folder / "log")
    return DriverRun(config, str(folder / "runs"), options=options, log=log, **arguments)  # type: ignore[arg-type]


def store_of(folder: Path) -> Store:
    return Store(str(folder / "runs" / "tiny"))


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("log*")))


def num_tracebacks(folder: Path) -> int:
    return log_of(folder).count("Traceback (most recent call last)")


def leftovers(folder: Path) -> list[Path]:
    store = folder / "runs" / "tiny"
    return [path for pattern in LEFTOVERS for path in store.glob(pattern)]


Scenario = Callable[[Soak, random.Random], Outcome]
