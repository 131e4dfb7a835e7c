"""Driver processes: forked from a process that has torch loaded, and killed at a given write.

    test --{storage, kill_after, ..}--> server --fork--> driver: SIGKILL to itself after write n
         <-----{signal or code}------          <--wait--

Forking saves the imports. The server itself never computes, so no thread of it is lost in a fork.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.tiny_experiment import ROOT, environment


@dataclass(frozen=True)
class DriverRun:
    """Arguments of a driver process."""

    config: str
    storage: str
    verb: str = "run"
    """`run`, or a verb that takes the URI of the experiment alone, e.g. verify."""
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Options of the verb `run`, e.g. --take-over."""
    fleet: str = "local"
    env: dict[str, str] = field(default_factory=dict)
    kill_after: int | None = None
    """Ledger writes of this process after which it kills itself. None: it runs to its end."""
    faults: tuple[dict[str, Any], ...] = ()
    """See `tests.faults.injected.sitecustomize`."""
    log: str | None = None
    """File for its output. None: stderr of the server."""

    @property
    def argv(self) -> list[str]:
        if self.verb != "run":
            return ["soupfleet", self.verb, f"{self.storage}/tiny"]
        command = ["soupfleet", "run", self.config, *self.overrides, *self.options]
        return [*command, "--storage", self.storage, "--fleet", self.fleet, "--plain"]


@dataclass(frozen=True)
class ExitStatus:
    """The end of a driver process."""

    code: int
    """Exit code, or minus the number of the signal, as in subprocess."""
    writes: int
    """Ledger writes of this process."""
    pid: int
    """Its process id, which is also the id of its session."""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class UninterruptedRun:
    """Result of an experiment without faults."""

    served: dict[str, bytes]
    writes: int
    """Writes of its ledger."""


class ForkServer:
    """The process that forks drivers; a context manager."""

    def __enter__(self) -> "ForkServer":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver_processes"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def run(self, arguments: DriverRun) -> ExitStatus:
        """Run one driver to its end."""
        self.start(arguments)
        return self.wait()

    def start(self, arguments: DriverRun) -> int:
        """Start a driver in the background; returns its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(arguments)) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> ExitStatus:
        """Wait for the end of the driver that was started."""
        return ExitStatus(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the fork server died"
        return answer


def _serve() -> None:
    # stdout carries the answers, so output of drivers goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _preload()
    for line in sys.stdin:
        arguments = json.loads(line)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            os.setsid()
            os._exit(_drive(DriverRun(**arguments), write_end))
        print(pid, file=answers, flush=True)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as counter:
            writes = len(counter.read())
        _, exit_code = os.waitpid(pid, 0)
        status = ExitStatus(os.waitstatus_to_exitcode(exit_code), writes, pid)
        print(json.dumps(asdict(status)), file=answers, flush=True)


def _preload() -> None:
    import plotly.offline  # noqa: F401
    import sklearn.datasets
    import sklearn.manifold  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    import workers.analysis.analyse
    import workers.merging.recipe_driver
    import workers.merging.taste
    import workers.merging.write_soup
    import workers.ray_actor
    import workers.scoring.compare
    import workers.training.base_model
    import workers.training.train  # noqa: F401

    torch.set_num_threads(1)


def _drive(arguments: DriverRun, counter: int) -> int:
    """In the child: the command `run`, with a ledger that kills the process after a given write.

    Every write is reported as a byte to the pipe `counter`.
    """
    from orchestrator import cli
    from orchestrator.commands import run
    from orchestrator.driver import ledger
    from tests.faults.injected.sitecustomize import inject

    os.environ.update(arguments.env)
    _redirect_output(arguments.log)
    inject(list(arguments.faults))

    class DeadlyLedger(ledger.Ledger):
        written = 0

        def append(self, events: list[Any]) -> list[Any]:
            group = super().append(events)
            if group:
                self.written += 1
                os.write(counter, b".")
            if self.written == arguments.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return group

    run.Ledger = DeadlyLedger  # type: ignore[misc]
    sys.argv = arguments.argv
    return _exit_code(cli.main)


def _redirect_output(log: str | None) -> None:
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)


def _exit_code(main: Callable[[], object]) -> int:
    """Run a command line; a traceback is printed, and its exit code is 1, as Python does it."""
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve()
