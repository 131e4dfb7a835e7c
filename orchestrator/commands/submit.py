"""The verb `submit`: run an experiment as a Ray job, from a machine outside the cluster.

    config.yaml + orchestrator/ + workers/ -> working_dir -> job driver (no GPU) -> verb `run`

The packages are sent along, so driver and actors run the code that read the configuration. Data and
storage are not: the nodes must reach them by the same path or URI.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator import config
from orchestrator.config import Experiment
from orchestrator.fleet.address import require_dashboard
from workers.errors import UserError, first_line
from workers.storage.local_disk import expanded

READY_TIMEOUT_S = 120.0
"""Time for a head that has just started to accept a job."""

NOT_READY = "No available agent"
"""Part of Ray's answer until the head's own agent has reported."""

EXPECTED = "give that of the head's dashboard, as in --address http://HEAD:8265"
"""Remedy for a wrong address."""

RUN = "-m orchestrator run config.yaml --address auto --plain"
"""Arguments of python in the job."""

ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Environment variables that Ray's client prefers to the address that it is given."""


def submit_job(experiment: Experiment, address: str, wait: bool) -> int:
    """Run the experiment as a job of the cluster at `address`.

    Returns 0 once it is submitted. With `wait`, prints the log of the job and returns its exit
    code.

    Raises:
        UserError: there is no address, nothing answers at it, or it needs a token.
    """
    host = _host(address)
    require_dashboard(address)
    _use_own_token(host)
    with (
        _without_ray_addresses(),
        tempfile.TemporaryDirectory(prefix="soupfleet-submit-") as folder,
    ):
        fill(Path(folder), experiment)
        client = _client(address)
        job = _submit(client, folder, experiment.name)
        print(f"Submitted {job}: {config.shown_uri(_absolute(experiment))}")
        print(f"  ray job logs --address {address} --follow {job}")
        print(f"  ray job stop --address {address} {job}")
        return _follow(client, job) if wait else 0


def job_entrypoint() -> str:
    """The shell line of the job. It uses the python of this virtual environment if the head has it
    (same machine, shared disk), else the python of the cluster."""
    # Ray's uv hook would rebuild the environment for every worker of a head started by `uv run`.
    line = f"RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 python {RUN}"
    if sys.prefix == sys.base_prefix:
        return line
    return f'PATH={shlex.quote(str(Path(sys.prefix) / "bin"))}:"$PATH" {line}'


def fill(folder: Path, experiment: Experiment) -> None:
    """Write the configuration and the code into the job's working folder.

    Only named keys are written: an experiment that has begun keeps its other values.
    """
    (folder / "config.yaml").write_text(config.dump(_absolute(experiment), named_only=True))
    for package in ("orchestrator", "workers"):
        source = Path(__file__).parents[2] / package
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / package, ignore=ignored)


def _absolute(experiment: Experiment) -> Experiment:
    """The experiment with an absolute storage; the job's working folder is deleted by Ray."""
    if "://" in experiment.storage:
        return experiment
    storage = str(expanded(experiment.storage).absolute())
    return experiment.model_copy(update={"storage": storage})


# The cluster


def _host(address: str) -> str:
    """The host of a dashboard's address."""
    if not address:
        raise UserError(f"submit needs an address; {EXPECTED}")
    try:
        parts = urlsplit(address)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:  # of a host or port that is none
        host = None
    if host is None:
        raise UserError(f"--address {address} is not the address of a dashboard; {EXPECTED}")
    return host


@contextlib.contextmanager
def _without_ray_addresses() -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _use_own_token(host: str) -> None:
    """Send the token that Ray keeps here to a head on this machine, as `ray.init` does. Other hosts
    get it only if the user sets RAY_AUTH_MODE, because they would learn it."""
    is_here = host == "localhost" or host.startswith("127.") or host == "::1"
    if is_here and (Path.home() / ".ray" / "auth_token").is_file():
        # Read when ray is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at --address {address} needs a token; set RAY_AUTH_MODE=token, and put "
            "the token into ~/.ray/auth_token or name its file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--address {address} is not a Ray dashboard ({first_line(error)}); {EXPECTED}"
        ) from error


def _submit(client: Any, folder: str, name: str) -> str:
    """The id of the submitted job. Tries again while a head that has just started is not ready."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            job: str = client.submit_job(
                entrypoint=job_entrypoint(),
                runtime_env={"working_dir": folder},
                entrypoint_num_gpus=0,
                metadata={"experiment": name},
            )
            return job
        except RuntimeError as error:
            if NOT_READY not in str(error):
                raise
            if time.monotonic() > deadline:
                raise UserError(
                    f"the cluster has accepted no job for {READY_TIMEOUT_S:.0f} s ({NOT_READY}); "
                    "check its head, and submit again"
                ) from error
        except OSError as error:
            raise UserError(
                f"the head stopped before it accepted the job ({error}); check it, and submit again"
            ) from error
        print("the head is not ready for a job; trying again", file=sys.stderr)
        time.sleep(2)


# Waiting


def _follow(client: Any, job: str) -> int:
    """Print the job's log until the job ends; returns its exit code."""
    asyncio.run(_print_log(client, job))
    details = client.get_job_info(job)
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    print(f"Job {job}: {details.status.value}: {details.message}", file=sys.stderr)
    return 0 if details.status.value == "SUCCEEDED" else 1


async def _print_log(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
