"""Submit: hand an experiment to a cluster as a Ray job, from a machine that is no part of it.

    resolved config.yaml + orchestrator/ + workers/ -> working_dir -> job driver (no GPU) -> `run`

The packages travel along, so that driver and actors run the code that read the configuration. Data
and storage do not: they must be reachable from the nodes by the same path or URI.
"""

import asyncio
import contextlib
import http.client
import os
import shlex
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator import config
from orchestrator.config import Experiment
from workers.errors import UserError

DASHBOARD_TIMEOUT_S = 5.0

READY_TIMEOUT_S = 120.0
NOT_READY = "No available agent"
"""What Ray answers until the head's own agent has reported."""

EXPECTED = "give that of the head's dashboard, as in --address http://HEAD:8265"

RUN = "-m orchestrator run config.yaml --address auto --plain"

ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Variables that Ray's client obeys before the address it is given."""


def submit_job(experiment: Experiment, address: str, wait: bool) -> int:
    """Run the experiment as a job of the cluster at `address`.

    Returns 0 once it is submitted; with `wait` the exit code of the job, whose log is printed
    meanwhile.

    Raises:
        UserError: no address, nothing answers there, or it does not let us in.
    """
    host = _host(address)
    _refuse_unreachable(address)
    _use_own_token(host)
    with _no_addresses(), tempfile.TemporaryDirectory(prefix="soupfleet-submit-") as folder:
        fill(Path(folder), experiment)
        client = _client(address)
        job = _submit(client, folder, experiment.name)
        print(f"Submitted {job}: {config.uri(_absolute(experiment))}")
        print(f"  ray job logs --address {address} --follow {job}")
        print(f"  ray job stop --address {address} {job}")
        return _follow(client, job) if wait else 0


def job_entrypoint() -> str:
    """The shell line of the job. The interpreter of this virtual environment is taken where the
    head has it, too (the same machine, a shared disk); else the `python` of the cluster."""
    # Ray's uv hook would rebuild the environment for every worker of a head started by `uv run`.
    line = f"RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 python {RUN}"
    if sys.prefix == sys.base_prefix:
        return line
    return f'PATH={shlex.quote(str(Path(sys.prefix) / "bin"))}:"$PATH" {line}'


def fill(folder: Path, experiment: Experiment) -> None:
    """What the job needs of this machine, into its working folder."""
    (folder / "config.yaml").write_text(config.dump(_absolute(experiment), named_only=True))
    for package in ("orchestrator", "workers"):
        source = Path(__file__).parent.parent / package
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / package, ignore=ignored)


def _absolute(experiment: Experiment) -> Experiment:
    """A relative folder would be one inside the job's working folder, which Ray deletes."""
    if "://" in experiment.storage:
        return experiment
    storage = str(Path(experiment.storage).expanduser().absolute())
    return experiment.model_copy(update={"storage": storage})


# The cluster


def _host(address: str) -> str:
    """Of a dashboard's address."""
    if not address:
        raise UserError(f"submit needs an address; {EXPECTED}")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address} is not that of a dashboard; {EXPECTED}")
    return parts.hostname


def _refuse_unreachable(address: str) -> None:
    """Ray's client would wait for ever for a host that does not answer."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=DASHBOARD_TIMEOUT_S)
    except urllib.error.HTTPError:
        return  # somebody is there; what it says is for Ray's client to judge
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"nothing answers at --address {address} ({error}); check that the head runs (`ray "
            "status` there) with its dashboard, and that its port is open from here"
        ) from error


@contextlib.contextmanager
def _no_addresses() -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _use_own_token(host: str) -> None:
    """To this machine's own head, the token that Ray keeps here goes along, as in `ray.init`. To
    other hosts it goes only if the user says so: whoever answers there would get to know it."""
    is_here = host == "localhost" or host.startswith("127.") or host == "::1"
    if is_here and (Path.home() / ".ray" / "auth_token").is_file():
        # Ray reads it when imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"the cluster at --address {address} wants its token; set RAY_AUTH_MODE=token, and put "
            "the token into ~/.ray/auth_token or name its file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"what answers at --address {address} is no Ray dashboard ({reason}); {EXPECTED}"
        ) from error


def _submit(client: Any, folder: str, name: str) -> str:
    """Id of the job. A head that has only just started has nobody yet to take it."""
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
                    f"the cluster has taken no job for {READY_TIMEOUT_S:.0f} s ({NOT_READY}); "
                    "check that its head is well, and submit again"
                ) from error
        except OSError as error:
            raise UserError(
                f"the head went away before it took the job ({error}); check it, and submit again"
            ) from error
        print("the head is not ready to take a job; trying again", file=sys.stderr)
        time.sleep(2)


# Waiting


def _follow(client: Any, job: str) -> int:
    """Print the job's log until it ends."""
    asyncio.run(_print_log(client, job))
    details = client.get_job_info(job)
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    print(f"Job {job}: {details.status.value}: {details.message}", file=sys.stderr)
    return 0 if details.status.value == "SUCCEEDED" else 1


async def _print_log(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
