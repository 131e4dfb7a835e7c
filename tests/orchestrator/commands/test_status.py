"""Verbs that read: the table until the end, logs of all attempts, a score as a table."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.commands.status import run_log, score_view, views_of, watch_status
from tests.orchestrator.small_fleet import replayed, run_small
from workers.errors import UserError
from workers.storage.layout import CONFIG
from workers.storage.store import Store
from workers.types import Score


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield run_small(tmp_path_factory.mktemp("finished"), "base.trunk_epochs=0")[0]


def shown(view: object) -> str:
    sink = io.StringIO()
    Console(width=160, file=sink).print(view)
    return sink.getvalue()


def test_watching_a_finished_experiment_shows_it_once(
    finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    watch_status(Store(finished), finished, refresh_s=60)
    assert "finished" in capsys.readouterr().out


def test_every_view_is_replayed_anew(finished: str, tmp_path: Path) -> None:
    """The ledger grows file by file, as with a driver."""
    growing = Store(str(tmp_path / "growing"))
    source = Store(finished)
    growing.write(CONFIG, source.read(CONFIG))
    views = views_of(growing, "growing")
    ends = [next(views)[1]]
    for path in source.list("ledger"):
        growing.write(path, source.read(path))
        ends.append(next(views)[1])
    assert not any(ends[:-1]) and ends[-1]


def test_watching_without_an_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment at"):
        watch_status(Store(str(tmp_path)), str(tmp_path))


def test_a_log_has_all_attempts_in_order(finished: str, tmp_path: Path) -> None:
    expanded, _, store = replayed(finished)
    run = expanded.runs[0].id
    text = run_log(store, run)
    assert "== attempt 1 ==" in text and "epoch 2" in text
    copy = Store(str(tmp_path))
    copy.write(CONFIG, store.read(CONFIG))
    for attempt in (10, 2, 1):
        copy.write(f"runs/{run}/logs/attempt-{attempt}.log", b"line\n")
    log = run_log(copy, run)
    assert log.index("attempt 1 ") < log.index("attempt 2 ") < log.index("attempt 10 ")
    assert "no log yet" in run_log(copy, expanded.runs[1].id)


def test_an_unknown_run_names_the_nearest(finished: str) -> None:
    expanded, _, store = replayed(finished)
    id = expanded.runs[1].id
    with pytest.raises(UserError, match=id):
        run_log(store, id[:-1] + "x")
    with pytest.raises(UserError, match="no run"):
        run_log(store, "../base")


def test_a_score_is_shown_in_percent_and_nats() -> None:
    score = Score(count=7, top1=0.5, macro_f1=0.25, nll=1.5, ece=None)
    text = shown(score_view(score, "runs/x/soup", "images"))
    assert "runs/x/soup on images" in text
    assert "50.00" in text and "25.00" in text and "1.5000" in text
