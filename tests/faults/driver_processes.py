"""Lives of drivers: forked from one process that has torch loaded, and killed on cue.

    test --{storage, kill_after, ..}--> nursery --fork--> driver: SIGKILL to itself after write n
         <------{signal or code}------          <--wait--

Forking saves the imports of each life; the nursery itself never computes, so there is nothing
that a fork could tear.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.tiny_experiment import ROOT, environment


@dataclass(frozen=True)
class Life:
    """What a driver is told."""

    config: str
    storage: str
    overrides: tuple[str, ...] = ()
    fleet: str = "local"
    env: dict[str, str] = field(default_factory=dict)
    kill_after: int | None = None
    """Ledger writes of this life after which it dies at once."""


@dataclass(frozen=True)
class Death:
    code: int
    """Exit code, or minus the signal's number, as subprocess has it."""
    writes: int
    """Ledger writes of this life."""
    pid: int
    """Also the id of its session."""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Undisturbed:
    """An experiment to which nothing happened."""

    served: dict[str, bytes]
    writes: int
    """Of its ledger."""


class Nursery:
    """The process that forks drivers; a context."""

    def __enter__(self) -> "Nursery":
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

    def live(self, life: Life) -> Death:
        """One driver from its start to its end."""
        self.begin(life)
        return self.end()

    def begin(self, life: Life) -> int:
        """A driver that lives on meanwhile; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(life)) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def end(self) -> Death:
        """The death of the driver that was begun."""
        return Death(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the nursery died"
        return answer


def _serve() -> None:
    # stdout belongs to the conversation; whatever a driver prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _preload()
    for line in sys.stdin:
        life = json.loads(line)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            os.setsid()
            os._exit(_drive(Life(**life), write_end))
        print(pid, file=answers, flush=True)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as told:
            writes = len(told.read())
        _, status = os.waitpid(pid, 0)
        death = Death(os.waitstatus_to_exitcode(status), writes, pid)
        print(json.dumps(asdict(death)), file=answers, flush=True)


def _preload() -> None:
    import plotly.offline  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    import workers.merging.recipe_driver
    import workers.merging.taste
    import workers.merging.write_soup
    import workers.ray_actor
    import workers.scoring.compare
    import workers.training.base_model
    import workers.training.train  # noqa: F401

    torch.set_num_threads(1)


def _drive(life: Life, tell: int) -> int:
    """In the child: a session whose ledger kills the process after its n-th write."""
    from orchestrator import config
    from orchestrator.commands import run
    from orchestrator.driver import ledger
    from workers.errors import UserError

    os.environ.update(life.env)

    class DeadlyLedger(ledger.Ledger):
        written = 0

        def append(self, events: list[Any]) -> list[Any]:
            group = super().append(events)
            if group:
                self.written += 1
                os.write(tell, b".")
            if self.written == life.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return group

    ledger.Ledger = DeadlyLedger  # type: ignore[misc]
    try:
        experiment = config.load(Path(life.config), life.overrides, storage=life.storage)
        fleet: Any = life.fleet
        outcome = run.run(experiment, run.Options(fleet=fleet, plain=True))
        return outcome.exit_code
    except UserError as error:
        print(error)
        return run.BAD
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    _serve()
