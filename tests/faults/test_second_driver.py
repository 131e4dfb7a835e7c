"""Two drivers of one experiment: the second is refused in one sentence, or takes over."""

import os
import signal
from pathlib import Path

from tests.faults import tiny_experiment
from tests.faults.driver_processes import DriverRun, ForkServer


def test_a_second_driver_is_refused_and_may_take_over(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    first = DriverRun(
        str(tiny_experiment.config_file(tmp_path)),
        str(tmp_path / "runs"),
        overrides=tiny_experiment.LONG,
    )
    pid = fork_server.start(first)
    tiny_experiment.wait_for(lambda: len(tiny_experiment.peek(tmp_path / "runs" / "tiny")) > 8)

    with tiny_experiment.Command(tmp_path, "--fleet", "local", *tiny_experiment.LONG) as second:
        assert second.wait() == 2
        assert len(second.output.splitlines()) == 1
        for text in ("is being driven by", str(pid), "--take-over"):
            assert text in second.output

    with tiny_experiment.Command(
        tmp_path, "--fleet", "local", "--take-over", *tiny_experiment.LONG
    ) as third:
        third.wait_for("opened", count=2)
        assert fork_server.wait().code == 2, "the first one notices and ends"
        num_events = len(tiny_experiment.peek(Path(third.uri)))
        third.wait_for("evaluated", count=_count(third, "evaluated") + 2)
        third.signal(signal.SIGINT)
        assert third.wait() == 4, third.output
        events = tiny_experiment.events(third.store)
        assert len(events) > num_events
        assert [e.driver.rpartition(":")[2] for e in events if e.kind == "opened"] == [
            str(pid),
            str(third.process.pid),
        ]
    assert not os.path.exists(f"/proc/{pid}")


def _count(command: tiny_experiment.Command, kind: str) -> int:
    return sum(event["kind"] == kind for event in tiny_experiment.peek(Path(command.uri)))
