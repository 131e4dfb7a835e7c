"""Submit: refusals at once; on a real head, the job's exit code and its results."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator import config
from orchestrator.commands.submit import fill, job_entrypoint, submit_job
from tests.orchestrator.small_fleet import replayed, small_experiment
from workers.errors import UserError


@pytest.fixture(autouse=True)
def _own_token_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """`submit` sets RAY_AUTH_MODE for the head of this machine; later tests must not see it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")


@pytest.mark.parametrize("address", ["", "head:8265", "ray://head:10001", "auto", "http://"])
def test_an_address_that_is_not_a_dashboard_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="http://HEAD:8265"):
        submit_job(small_experiment(tmp_path), address, wait=False)


def test_an_address_where_nothing_answers_is_refused_soon(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="nothing answers at --address http://127.0.0.1:9"):
        submit_job(small_experiment(tmp_path), "http://127.0.0.1:9", wait=False)
    assert time.monotonic() - began < 6


def test_a_silent_host_is_refused_soon(tmp_path: Path) -> None:
    """It accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UserError, match="nothing answers"):
            submit_job(small_experiment(tmp_path), address, wait=False)
        assert time.monotonic() - began < 8


def test_another_web_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS names another cluster, which is not contacted."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="--address http://127.0.0.1:.* Ray dashboard"):
            submit_job(small_experiment(tmp_path), f"http://127.0.0.1:{server.server_port}", False)
    finally:
        server.shutdown()
        server.server_close()
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


def test_the_working_folder_holds_the_code_and_the_resolved_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough to run with nothing else on the path. A relative storage is resolved here."""
    monkeypatch.chdir(tmp_path)
    experiment = small_experiment(tmp_path, "storage=here", "train.lr=0.5")
    folder = tmp_path / "job"
    folder.mkdir()
    fill(folder, experiment)
    code = (
        "import orchestrator.config as c, workers.types, sys; e = c.load('config.yaml');"
        "print(c.__file__, workers.types.__file__, c.uri(e), e.train.lr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    driver, types, uri, lr = done.stdout.split()
    assert driver == str(folder / "orchestrator" / "config" / "__init__.py")
    assert types == str(folder / "workers" / "types" / "__init__.py")
    assert (uri, lr) == (str(tmp_path / "here" / "small"), "0.5")
    assert uri == config.uri(experiment)


def test_the_job_runs_the_configuration_on_its_own_cluster() -> None:
    line = job_entrypoint()
    assert line.endswith("python -m orchestrator run config.yaml --address auto --plain")
    assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in line


PORT, GCS_PORT = 8275, 6389
STARTUP_S = 120


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head on this machine, which ends with all its processes after the tests.

    Not beside another Ray: they would share /tmp/ray and too few cores.
    """
    if subprocess.run(["pgrep", "-x", "raylet"], capture_output=True).returncode == 0:
        pytest.skip("another Ray is running on this machine")
    ray = str(Path(sys.executable).parent / "ray")
    log = tmp_path_factory.mktemp("head") / "head.log"
    start = [
        ray,
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        f"--port={GCS_PORT}",
        "--num-cpus=2",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*start, f"--dashboard-port={PORT}"], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_started(process, log)
            yield f"http://127.0.0.1:{PORT}"
        finally:
            _end(process)


def _wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the head. On a machine that is too busy, Ray's own processes time out."""
    deadline = time.monotonic() + STARTUP_S
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End these processes by id: `ray stop` would end all Rays of the machine."""
    if process.poll() is not None:
        return
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for survivor in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    process.wait()


@pytest.mark.slow
def test_a_job_ends_with_the_exit_code_of_its_run(
    head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """0 and a served soup; then 2 where the configuration cannot work."""
    experiment = small_experiment(tmp_path, "base.trunk_epochs=0")
    assert submit_job(experiment, head, wait=True) == 0
    _, state, store = replayed(config.uri(experiment))
    assert state.served is not None and state.served.soup is not None
    assert store.exists("report.html")
    printed = capfd.readouterr().out
    assert "Submitted raysubmit_" in printed and "ray job logs" in printed
    wrong = small_experiment(tmp_path, "name=wrong", "data.train=nowhere")
    assert submit_job(wrong, head, wait=True) == 2
    assert "data.train" in capfd.readouterr().out
    assert submit_job(experiment, head, wait=False) == 0
