"""Hostile inputs are accepted or refused in a sentence, in time, and start no program."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.hostile_inputs import KINDS, TookTooLong, time_limit, try_input

PROGRAMS = frozenset(
    ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen")
)
"""Audit events of a program that is started."""

FEW = 6
"""Inputs of every kind in the quick form."""
MANY = {
    **{"config": 400, "override": 300, "path": 150, "plan": 150, "image": 250},
    **{"prediction": 100, "shard": 250, "parquet": 150, "checkpoint": 100, "manifest": 100},
    **{"ledger": 100},
}
"""Inputs of every kind in the long form: 2,050."""
SLOW_KINDS = frozenset(("path", "plan", "manifest", "ledger"))
"""Kinds of which one input takes seconds, or needs an experiment."""

_watched: list[list[str]] = []
"""The list of the fixture that is in use. An audit hook cannot be removed."""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in PROGRAMS and _watched:
        _watched[-1].append(f"{event} {arguments!r:.200}")


sys.addaudithook(_note)


@pytest.fixture
def programs() -> Iterator[list[str]]:
    """The programs that the test started."""
    _watched.append([])
    yield _watched[-1]
    _watched.clear()


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("SOUPFLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def outcomes(kind: str, seeds: range, folder: Path) -> Counter[str]:
    """Outcomes of the inputs of these seeds; the first fault raises with its seed."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        place = folder / f"{kind}-{seed}"
        place.mkdir()
        try:
            counts[try_input(kind, seed, place)] += 1
        except (Exception, TookTooLong) as error:
            raise AssertionError(f"{kind} {seed}: {type(error).__name__}: {error}") from error
    return counts


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - SLOW_KINDS))
def test_few_hostile_inputs(kind: str, tmp_path: Path, programs: list[str]) -> None:
    assert outcomes(kind, range(FEW), tmp_path).total() == FEW
    assert not programs


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_many_hostile_inputs(
    kind: str, tmp_path: Path, programs: list[str], record_property: Any
) -> None:
    counts = outcomes(kind, range(10_000, 10_000 + MANY[kind]), tmp_path)
    record_property("outcomes", dict(counts))
    print(f"{kind}: {counts['accepted']} accepted, {counts['refused']} refused")
    assert counts.total() == MANY[kind]
    assert not programs


def test_the_time_limit_is_kept() -> None:
    with pytest.raises(TookTooLong), time_limit(0.05):
        while True:
            pass
