"""Two drivers want one experiment: the second is refused in a sentence, or takes over."""

import os
import signal
from pathlib import Path

from tests.faults import tiny_experiment
from tests.faults.driver_processes import Life, Nursery


def test_a_second_driver_is_refused_and_may_take_over(nursery: Nursery, tmp_path: Path) -> None:
    first = Life(
        str(tiny_experiment.config_file(tmp_path)),
        str(tmp_path / "runs"),
        overrides=tiny_experiment.LONG,
    )
    pid = nursery.begin(first)
    tiny_experiment.wait_for(lambda: len(tiny_experiment.peek(tmp_path / "runs" / "tiny")) > 8)

    with tiny_experiment.Command(tmp_path, "--fleet", "local", *tiny_experiment.LONG) as second:
        assert second.wait() == 2
        assert len(second.output.splitlines()) == 1
        for word in ("is being driven by", str(pid), "--take-over"):
            assert word in second.output

    with tiny_experiment.Command(
        tmp_path, "--fleet", "local", "--take-over", *tiny_experiment.LONG
    ) as third:
        third.wait_for("opened", count=2)
        assert nursery.end().code == 2, "the first one notices and goes"
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
