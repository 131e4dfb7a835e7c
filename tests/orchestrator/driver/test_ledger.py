"""The ledger: appended events are replayed, at whatever instant the writer was killed."""

import json
import math
import re
import time
from pathlib import Path

import pytest

from orchestrator.driver.ledger import Ledger
from workers.errors import UserError
from workers.storage.store import CorruptFile, Store
from workers.types import AnyEvent, BackoffOver, Started, Stopped, Tasted, TasteResult


def events(num: int) -> list[AnyEvent]:
    return [Started(order=f"train-{i}", run=f"r{i}", warm=True, gap_s=0.5) for i in range(num)]


def filled(store: Store) -> list[AnyEvent]:
    """A ledger of three files with 1, 3 and 2 events."""
    ledger = Ledger(store)
    opened = ledger.append([Stopped(reason="by hand")])
    return opened + ledger.append(events(3)) + ledger.append(events(2))


def test_an_empty_ledger_replays_nothing(store: Store) -> None:
    assert Ledger(store).replay() == []


def test_appended_events_are_replayed_in_order_by_a_new_driver(store: Store) -> None:
    written = filled(store)
    assert [event.seq for event in written] == [0, 1, 2, 3, 4, 5]
    assert Ledger(store).replay() == written
    names = ["ledger/00000000.jsonl", "ledger/00000001.jsonl", "ledger/00000004.jsonl"]
    assert store.list() == names


def test_a_new_driver_continues_where_the_last_one_stopped(store: Store) -> None:
    filled(store)
    [event] = Ledger(store).append([BackoffOver(order="a")])
    assert event.seq == 6
    assert Ledger(store).replay()[-1] == event


def test_appending_nothing_writes_nothing(store: Store) -> None:
    assert Ledger(store).append([]) == []
    assert store.list() == []


def test_every_event_comes_back_equal_even_with_numbers_json_lacks(store: Store) -> None:
    tasting = TasteResult(score=-math.inf, at_most=math.inf, samples=1)
    written = Ledger(store).append([Tasted(mix="m", tasting=tasting, cohort="c", busy_s=0.1)])
    assert Ledger(store).replay() == written
    assert b":Infinity" not in store.read("ledger/00000000.jsonl")


def test_a_file_torn_at_any_byte_keeps_its_complete_lines_and_the_ledger_continues(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    written = filled(store)
    last = "ledger/00000004.jsonl"
    whole = store.read(last)
    for end in range(len(whole)):
        store.write(last, whole[:end])
        expected = written[: 4 + whole[:end].count(b"\n")]
        ledger = Ledger(store)
        assert ledger.replay() == expected
        assert store.read(last) == whole[:end]  # reading changes nothing
        added = ledger.append([BackoffOver(order="a")])
        assert Ledger(store).replay() == expected + added
        for path in store.list()[2:]:
            store.delete(path)


def test_a_torn_file_before_the_last_is_named(store: Store) -> None:
    filled(store)
    path = "ledger/00000001.jsonl"
    store.write(path, store.read(path)[:-5])
    with pytest.raises(CorruptFile, match=path):
        Ledger(store).replay()


def test_a_gap_is_named(store: Store) -> None:
    filled(store)
    store.delete("ledger/00000001.jsonl")
    with pytest.raises(CorruptFile, match="ledger/00000004.jsonl.*does not follow event 0"):
        Ledger(store).replay()


@pytest.mark.parametrize(
    "line", [b"garbage\n", b'{"kind":"unknown"}\n', b"\n", b"\0\0\n", b"\xff\n"]
)
def test_a_complete_line_that_is_no_event_is_named_even_at_the_end(
    tmp_path: Path, line: bytes
) -> None:
    store = Store(str(tmp_path))
    filled(store)
    store.write("ledger/00000006.jsonl", line)
    with pytest.raises(CorruptFile, match="ledger/00000006.jsonl"):
        Ledger(store).replay()


def test_an_event_out_of_place_or_a_foreign_file_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    filled(store)
    store.write("ledger/00000006.jsonl", store.read("ledger/00000000.jsonl"))
    with pytest.raises(CorruptFile, match="event 0 in place of 6"):
        Ledger(store).replay()
    store.delete("ledger/00000006.jsonl")
    store.write("ledger/copy.jsonl", b"")
    with pytest.raises(CorruptFile, match="ledger/copy.jsonl"):
        Ledger(store).replay()


def test_files_are_in_numerical_order_beyond_eight_digits(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    names = ["ledger/100000000.jsonl", "ledger/99999999.jsonl"]
    for name in names:
        store.write(name, b"")
    assert Ledger(store)._paths() == names[::-1]


def test_a_second_driver_on_a_local_disk_is_refused_at_its_first_write(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, second = Ledger(store), Ledger(store)
    first.replay()
    second.replay()
    written = first.append(events(2))
    with pytest.raises(UserError, match="another driver"):
        second.append(events(1))
    assert Ledger(store).replay() == written


def test_a_thousand_runs_are_appended_and_replayed_in_seconds(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ledger = Ledger(store)
    began = time.perf_counter()
    for _ in range(1000):
        ledger.append(events(20))
    written_s = time.perf_counter() - began
    began = time.perf_counter()
    assert len(Ledger(store).replay()) == 20_000
    # Generous bounds: the machine may be busy.
    assert 20_000 / written_s > 500
    assert time.perf_counter() - began < 20


def test_a_changed_digit_is_named_and_ledgers_without_checksums_replay(store: Store) -> None:
    written = filled(store)
    path = "ledger/00000001.jsonl"
    text = store.read(path)
    assert all(json.loads(line)["kind"] == "started" for line in text.splitlines())
    store.write(path, text.replace(b'"gap_s":0.5', b'"gap_s":0.7', 1))
    with pytest.raises(CorruptFile, match=f"{path}.*checksum"):
        Ledger(store).replay()
    for old in store.list("ledger"):
        store.write(old, re.sub(rb',"crc32":\d+', b"", store.read(old) if old != path else text))
    assert Ledger(store).replay() == written
