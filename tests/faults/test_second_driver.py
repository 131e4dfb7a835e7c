"""Two drivers of one experiment: the second is refused in one sentence, or takes over."""

import os
import signal
from pathlib import Path

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer


def _driver_run(folder: Path, *options: str) -> DriverRun:
    config, storage = str(tiny_experiment.config_file(folder)), str(folder / "runs")
    log = str(folder / "log")
    overrides = tiny_experiment.LONG
    return DriverRun(config, storage, overrides=overrides, options=options, log=log)


def _wait_for(folder: Path, kind: str, count: int) -> None:
    tiny_experiment.wait_for(lambda: _kinds(folder).count(kind) >= count)


def _kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in tiny_experiment.peek(folder / "runs" / "tiny")]


def test_a_second_driver_is_refused_and_may_take_over(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    first = fork_server.start(_driver_run(tmp_path))
    _wait_for(tmp_path, "evaluated", 1)
    with ForkServer() as other_server:
        assert other_server.run(_driver_run(tmp_path)).code == 2
        refusal = (tmp_path / "log").read_text().splitlines()[-1]
        for text in ("is being driven by", str(first), "--take-over"):
            assert text in refusal

        third = other_server.start(_driver_run(tmp_path, "--take-over"))
        _wait_for(tmp_path, "opened", 2)
        assert fork_server.wait().code == 2, "the first one notices and ends"
        _wait_for(tmp_path, "evaluated", _kinds(tmp_path).count("evaluated") + 2)
        os.kill(third, signal.SIGTERM)
        assert other_server.wait().code == 4
    uri = str(tmp_path / "runs" / "tiny")
    drivers = [
        e.driver for e in tiny_experiment.events(tiny_experiment.Store(uri)) if e.kind == "opened"
    ]
    assert [int(driver.rpartition(":")[2]) for driver in drivers] == [first, third]
