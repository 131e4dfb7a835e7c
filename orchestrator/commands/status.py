"""The verbs that only read: a table kept up to date, the log of a run, the score of a model."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.commands import run
from orchestrator.driver.contents import read_experiment, read_state
from orchestrator.report import format
from orchestrator.report.terminal.console import SafeConsole
from orchestrator.report.terminal.status import phase
from orchestrator.report.terminal.tables import status_view
from orchestrator.schedule.moment import Moment
from workers.errors import UserError, did_you_mean
from workers.storage.layout import run_file
from workers.storage.store import Store
from workers.types import Score, run_id_of

REFRESH_S = 2.0
"""Between two replays; a remote ledger costs a listing and a round trip per file."""

OVER = frozenset({"finished", "failed"})
"""Phases after which nothing changes."""

SCORE_COLUMNS = ("top1", "macro_f1", "nll", "ece")
"""Metrics in the table of a score."""


def watch_status(store: Store, uri: str, refresh_s: float = REFRESH_S) -> None:
    """Show the table of the fleet, replayed from the ledger, until the experiment is over.

    Ctrl-C ends only this view.

    Raises:
        UserError: there is no experiment.
    """
    views = views_of(store, uri)
    view, is_over = next(views)
    with Live(view, console=SafeConsole(), auto_refresh=False, vertical_overflow="visible") as live:
        try:
            while not is_over:
                time.sleep(refresh_s)
                view, is_over = next(views)
                live.update(view, refresh=True)
        except KeyboardInterrupt:
            return


def views_of(store: Store, uri: str) -> Iterator[tuple[RenderableType, bool]]:
    """The current table, and whether it is the last one; replayed for every item."""
    while True:
        experiment = read_experiment(store)
        if experiment is None:
            raise UserError(
                f"there is no experiment at {uri}; give STORAGE/NAME, as in runs/quickstart"
            )
        moment = Moment(run.planned(experiment), read_state(store))
        yield status_view(moment, uri), phase(moment.state) in OVER


def run_log(store: Store, run_id: str) -> str:
    """The logs of all attempts of a run, in order.

    Raises:
        UserError: there is no such run.
    """
    run_ids = _run_ids(store)
    if run_id not in run_ids:
        hint = did_you_mean(run_id, run_ids) or f"soupfleet status {store} lists them"
        raise UserError(f"there is no run {run_id!r} in {store}; {hint}")
    logs = [path for path in store.list(run_file(run_id, "logs")) if path.endswith(".log")]
    if not logs:
        return f"Run {run_id} has no log yet.\n"
    return "\n".join(f"== {_name(path)} ==\n{_text(store, path)}" for path in _in_order(logs))


def _in_order(logs: list[str]) -> list[str]:
    """The paths by number of the attempt: 10 after 9."""
    return sorted(logs, key=lambda path: [int(n) for n in re.findall(r"\d+", _name(path))])


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".log").replace("-", " ")


def _text(store: Store, path: str) -> str:
    return store.read(path).decode("utf-8", errors="replace")


def _run_ids(store: Store) -> list[str]:
    """Runs of the configuration, and the stages of bases that have begun."""
    begun = {run_id_of(path.split("/")[1]) for path in store.list("runs")}
    experiment = read_experiment(store)
    planned = run.planned(experiment).runs if experiment is not None else ()
    return sorted(begun | {run.id for run in planned})


def score_view(score: Score, model_dir: str | Path, data: str | Path) -> RenderableType:
    """A score as a small table."""
    table = Table(pad_edge=False)
    for name in ("images", *(f"{format.METRIC_NAMES[m]}, {format.unit(m)}" for m in SCORE_COLUMNS)):
        table.add_column(name, justify="right")
    cells = [format.score_text(getattr(score, metric), metric) for metric in SCORE_COLUMNS]
    table.add_row(str(score.count), *cells)
    return Group(Text(f"{model_dir} on {data}", style="bold"), table)
