"""Progress of `run`: a live table on a terminal, plain lines in a pipe or log."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.report import format
from orchestrator.report.terminal import status
from orchestrator.report.terminal.console import SafeConsole
from orchestrator.report.terminal.event_lines import line
from orchestrator.report.terminal.tables import runs_table, soup_line
from orchestrator.schedule.moment import Moment
from workers.heartbeat import Heartbeat
from workers.text import one_line
from workers.types import AnyEvent

REDRAW_S = 0.5
"""Least time between two redraws: each evaluates every rule of the schedule."""


class ProgressView(Protocol):
    """Display that the driver's loop updates."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def update(
        self,
        moment: Moment,
        events: list[AnyEvent],
        heartbeats: list[Heartbeat],
        waiting_for: str | None = None,
    ) -> None: ...


def open_view(plain: bool | None = None, console: Console | None = None) -> ProgressView:
    """`plain` of None: live on a terminal, else plain."""
    console = console or SafeConsole()
    is_plain = not console.is_terminal if plain is None else plain
    return PlainView(console) if is_plain else LiveView(console)


class LiveView:
    """A table that is redrawn in place; lines of lasting events scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = float("-inf")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(
        self,
        moment: Moment,
        events: list[AnyEvent],
        heartbeats: list[Heartbeat],
        waiting_for: str | None = None,
    ) -> None:
        for event in events:
            if event.kind in LASTING:
                self._console.print(Text(line(moment, event) or "", style="yellow"))
        if time.monotonic() - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = time.monotonic()
        self._live.update(_screen(moment, heartbeats, waiting_for), refresh=True)


LASTING = frozenset(["failed", "retry_decided", "gave_up", "stopped", "finish_requested"])
"""Kinds of events that stay on the screen of a live view."""


def _screen(moment: Moment, heartbeats: list[Heartbeat], waiting_for: str | None) -> Group:
    waits = [
        Text(sentence, style="yellow") for sentence in status.pending_reasons(moment, waiting_for)
    ]
    runs = status.run_statuses(moment, heartbeats)
    bar = _progress(moment)
    return Group(runs_table(moment, runs), soup_line(moment), *waits, bar)


def _progress(moment: Moment) -> Table:
    """A bar over the epochs of all runs, with the estimated time left."""
    done, total = status.epochs_done(moment)
    left = status.seconds_left(moment, time.time())
    about = f"{done} of {total} run-epochs"
    if left is not None and done < total:
        about += f", about {format.duration(left)} of training left"
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=max(total, 1), completed=done, width=40), about)
    return grid


class PlainView:
    """A line per event that matters, with the time since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting_for: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiting_for = None

    def update(
        self,
        moment: Moment,
        events: list[AnyEvent],
        heartbeats: list[Heartbeat],
        waiting_for: str | None = None,
    ) -> None:
        for event in events:
            sentence = line(moment, event)
            if sentence is not None:
                since_s = event.driver_time - (moment.state.began_at or event.driver_time)
                self._print(since_s, sentence)
        if waiting_for != self._waiting_for and waiting_for is not None:
            self._print(time.time() - (moment.state.began_at or time.time()), waiting_for)
        self._waiting_for = waiting_for

    def _print(self, since_s: float, sentence: str) -> None:
        minutes, seconds = divmod(max(0, int(since_s)), 60)
        stamp = f"{minutes // 60:d}:{minutes % 60:02d}:{seconds:02d}"
        text = f"{stamp}  {one_line(sentence)}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
