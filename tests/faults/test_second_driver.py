"""Two drivers want one experiment: the second is refused in a sentence, or takes over."""

import os
import signal
from pathlib import Path

from tests.faults import tiny
from tests.faults.lives import Life, Nursery


def test_a_second_driver_is_refused_and_may_take_over(nursery: Nursery, tmp_path: Path) -> None:
    first = Life(str(tiny.config_file(tmp_path)), str(tmp_path / "runs"), overrides=tiny.LONG)
    pid = nursery.begin(first)
    tiny.wait_for(lambda: len(tiny.peek(tmp_path / "runs" / "tiny")) > 8)

    with tiny.Command(tmp_path, "--fleet", "local", *tiny.LONG) as second:
        assert second.wait() == 2
        assert len(second.output.splitlines()) == 1
        for word in ("is being driven by", str(pid), "--take-over"):
            assert word in second.output

    with tiny.Command(tmp_path, "--fleet", "local", "--take-over", *tiny.LONG) as third:
        third.wait_for("opened", count=2)
        assert nursery.end().code == 2, "the first one notices and goes"
        num_events = len(tiny.peek(Path(third.uri)))
        third.wait_for("evaluated", count=_count(third, "evaluated") + 2)
        third.signal(signal.SIGINT)
        assert third.wait() == 4, third.output
        events = tiny.events(third.store)
        assert len(events) > num_events
        assert [e.driver.rpartition(":")[2] for e in events if e.kind == "opened"] == [
            str(pid),
            str(third.process.pid),
        ]
    assert not os.path.exists(f"/proc/{pid}")


def _count(command: tiny.Command, kind: str) -> int:
    return sum(event["kind"] == kind for event in tiny.peek(Path(command.uri)))
