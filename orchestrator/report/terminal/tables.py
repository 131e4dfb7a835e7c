"""Tables of the terminal: final results, and the current status."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.report import format, verdict
from orchestrator.report.format import Json
from orchestrator.report.model_rows import Row, rows
from orchestrator.report.terminal import status
from orchestrator.report.terminal.status import RunStatus
from orchestrator.schedule.moment import Moment
from workers.storage.layout import REPORT, RESULTS, SERVED


def final_table(results: Json, uri: str | None = None) -> RenderableType:
    """Every model on every split, the served soup, and where the files are."""
    metric, splits = results["metric"], format.splits_of(results)
    title = f"{results['name']}: {format.METRIC_NAMES[metric]}, {format.unit(metric)}"
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column("model", overflow="fold")
    table.add_column("about", overflow="fold", style="dim")
    for split in splits:
        table.add_column(split, justify="right")
    report_split = verdict.report_split(results)
    if report_split is not None:
        table.add_column(f"{report_split} vs best single [95 %]", justify="right")
    kind = ""
    for row in rows(results):
        if kind and row.kind != kind:
            table.add_section()
        kind = row.kind
        difference = []
        if report_split is not None:
            difference = [format.interval(row.deltas.get(report_split))]
        scores = [format.score_text(format.score_of(row.scores, s, metric), metric) for s in splits]
        style = "bold green" if row.is_served else "red" if row.status == "failed" else ""
        cells = [_mark(row), _name(row), escape(row.about), *scores, *difference]
        table.add_row(*cells, style=style)
    return Group(table, *_closing_lines(results, uri or results["uri"]))


def _mark(row: Row) -> str:
    if row.is_served:
        return "served"
    return "best single" if row.is_best_single else ""


def _name(row: Row) -> str:
    prefix = "" if row.kind == "run" else f"{row.kind} "
    ended = "" if row.status == "done" else f" ({row.status})"
    return escape(f"{prefix}{row.name}{ended}")


def _closing_lines(results: Json, uri: str) -> Iterator[Text]:
    yield Text(verdict.verdict(results).sentence, style="bold")
    for run in format.trained(results):
        if run["status"] == "failed":
            yield Text(f"Run {run['id']} failed: {run['failure']}", style="bold red")
    for failure in results["failures"]:
        if failure["run"] is None and failure["gave_up"]:
            yield Text(f"{failure['order']} was given up: {failure['gave_up']}", style="bold red")
    for warning in verdict.warnings(results):
        yield Text(f"Warning: {warning}", style="yellow")
    yield Text(format.fleet_use(results))
    yield _path("Results ", uri, RESULTS)
    yield _path("Report  ", uri, REPORT)
    if results["served"] is None:
        yield Text("No soup is served: none could be made.", style="bold red")
    else:
        yield _path("Soup    ", uri, SERVED)


def _path(label: str, uri: str, name: str) -> Text:
    """A path on one line, so that it can be copied."""
    place, question, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return Text(f"{label} {place.rstrip('/')}/{name}{question}{query}", no_wrap=True)


MAX_RUNS = 40
"""Runs that a table shows; more do not fit a terminal."""

STYLES = {
    "running": "bold",
    "done": "green",
    "failed": "red",
    "retrying": "yellow",
    "stopped": "yellow",
    "queued": "dim",
    "waiting": "dim",
}


def status_view(moment: Moment, uri: str) -> RenderableType:
    """Status of the experiment, from its ledger alone."""
    head = Text(f"{moment.config.name}: {status.phase(moment.state)}", style="bold")
    head.append(f"  {uri}", style="dim")
    lines: list[RenderableType] = [head, runs_table(moment, status.run_statuses(moment))]
    lines += [soup_line(moment)]
    if status.phase(moment.state) in ("running", "waiting"):
        lines += [Text(sentence, style="yellow") for sentence in status.pending_reasons(moment)]
    if moment.state.served is not None and moment.state.served.soup is not None:
        lines += [Text(f"Served: {moment.state.served.soup}", style="bold green")]
    return Group(*lines)


def status_json(moment: Moment) -> Json:
    return {
        "state": status.phase(moment.state),
        "name": moment.config.name,
        "runs": [asdict(run) for run in status.run_statuses(moment)],
        "soups": [asdict(soup) for soup in status.soup_statuses(moment)],
        "waits": list(status.pending_reasons(moment)),
        "served": moment.state.served.soup if moment.state.served is not None else None,
        "events": moment.state.last_seq + 1,
    }


def runs_table(moment: Moment, runs: Iterable[RunStatus]) -> Table:
    """At most MAX_RUNS runs, the running ones first."""
    metric = moment.config.soup.metric
    score = f"val {format.METRIC_NAMES[metric]}, {format.unit(metric)}"
    table = Table(pad_edge=False)
    for name in ("run", "params", "state"):
        table.add_column(name, overflow="fold")
    for name in ("epoch", "loss", score, "images/s"):
        table.add_column(name, justify="right")
    table.add_column("slot")
    ordered = sorted(runs, key=lambda run: run.status not in ("running", "retrying"))
    for run in ordered[:MAX_RUNS]:
        table.add_row(*_run_cells(run, metric), style=STYLES[run.status])
    if len(ordered) > MAX_RUNS:
        table.add_row("", f"and {len(ordered) - MAX_RUNS} more", style="dim")
    return table


def _run_cells(run: RunStatus, metric: str) -> list[str]:
    name = run.id if run.role == "member" else f"{run.id} (base)"
    state = f"{run.status}: {run.note}" if run.note else run.status
    return [
        escape(name),
        escape(run.params),
        escape(state),
        f"{run.epochs_done}/{run.epochs}",
        format.UNKNOWN if run.loss is None else f"{run.loss:.4f}",
        format.score_text(run.score, metric),
        format.UNKNOWN if run.images_per_s is None else f"{run.images_per_s:.0f}",
        run.slot or "",
    ]


def soup_line(moment: Moment) -> Text:
    """The anytime soup, or the final soups."""
    metric = moment.config.soup.metric
    soups = status.soup_statuses(moment)
    if not soups:
        return Text("Soup so far: none yet", style="dim")
    parts = [
        f"{soup.label} {format.score_text(soup.score, metric)} {format.unit(metric)} on val, "
        f"{soup.share}"
        for soup in soups
    ]
    return Text("Soup so far: " + "; ".join(parts), style="bold cyan")
