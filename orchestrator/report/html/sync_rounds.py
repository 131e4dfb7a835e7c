"""Sync rounds: the merged weights against their members."""

from collections.abc import Iterator
from statistics import mean

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    ENSEMBLE,
    INGREDIENT,
    SOUP,
    Figure,
    FigureView,
    layout_of,
)
from orchestrator.report.html.tables import Cell, Column, Table, TableRow, number

_CAPTION = (
    "Selection scores at the end of each round: every member before the merge (dots), their mean, "
    "and the merged weights that they went on from or were pulled towards (thick). Diversity shows "
    "whether the members still differ: the cosine of two members' displacements from the base (1: "
    "the same direction), and the share of images that two members classify differently."
)


def round_parts(results: Json) -> tuple[Figure, Table] | tuple[()]:
    """A figure and a table; nothing without sync rounds."""
    synced = [one for one in results["rounds"] if one["mode"] == "sync"]
    if not any(one["participants"] for one in synced):
        return ()
    return _figure(results, synced), _table(results, synced)


def _figure(results: Json, synced: list[Json]) -> Figure:
    views = {
        "accuracy": _score_traces(results, synced, "top1", 100.0),
        "loss": _score_traces(results, synced, "nll", 1.0),
        "diversity": _diversity(results, synced),
    }
    titles = {
        "accuracy": f"accuracy on {results['selection']}, %",
        "loss": f"negative log-likelihood on {results['selection']}, nats",
        "diversity": "cosine, share of images",
    }
    layout = layout_of(
        420,
        xaxis={"title": {"text": "epochs of the mean member"}},
        yaxis={"title": {"text": titles["accuracy"]}},
        hovermode="closest",
    )
    choices = tuple(
        FigureView(label, view, {"yaxis": {"title": {"text": titles[label]}}})
        for label, view in views.items()
    )
    return Figure("merged-and-members", _CAPTION, views["accuracy"], layout, choices)


def _score_traces(results: Json, synced: list[Json], metric: str, scale: float) -> list[Json]:
    return [
        trace
        for name, ours in _groups(results, synced)
        for trace in (
            _points(f"members{name}", ours, metric, scale),
            _line(f"members' mean{name}", ours, [_mean_score(r, metric, scale) for r in ours], 2),
            _line(f"merged{name}", ours, [_merged_score(r, metric, scale) for r in ours], 4),
        )
    ]


def _groups(results: Json, synced: list[Json]) -> Iterator[tuple[str, list[Json]]]:
    """(label, rounds) of each group of runs that were merged with one another. No label: one
    group."""
    group_of = {one["id"]: one["id"].rpartition("-")[0] for one in synced}
    names = {cohort["id"]: cohort["name"] for cohort in results["cohorts"]}
    groups = list(dict.fromkeys(group_of.values()))
    for group in groups:
        ours = [one for one in synced if group_of[one["id"]] == group]
        fold = group.partition("-fold")[2]
        label = f", {names.get(ours[0]['cohort'], '')}" + (f" fold {fold}" if fold else "")
        yield label if len(groups) > 1 else "", ours


def _points(name: str, ours: list[Json], metric: str, scale: float) -> Json:
    points = [
        (one["epoch"], scale * member["scores"][metric], member["run"])
        for one in ours
        for member in one["participants"]
        if member["scores"] is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [epoch for epoch, _, _ in points],
        "y": [score for _, score, _ in points],
        "text": [run for _, _, run in points],
        "marker": {"size": 7, "color": INGREDIENT, "opacity": 0.7},
        "hovertemplate": "%{y:.3f}  %{text}<extra></extra>",
    }


def _line(name: str, ours: list[Json], values: list[float | None], width: int) -> Json:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [one["epoch"] for one in ours],
        "y": values,
        "text": [f"round {one['round']}: {one['reason']}" for one in ours],
        "line": {"width": width, "color": SOUP if width > 2 else INGREDIENT},
        "marker": {"size": 3 + width},
        "hovertemplate": "%{y:.3f}  <b>%{fullData.name}</b><br>%{text}<extra></extra>",
        "connectgaps": True,
    }


def _mean_score(one: Json, metric: str, scale: float) -> float | None:
    scores = [
        member["scores"][metric] for member in one["participants"] if member["scores"] is not None
    ]
    return scale * mean(scores) if scores else None


def _merged_score(one: Json, metric: str, scale: float) -> float | None:
    return None if one["merged"] is None else scale * one["merged"][metric]


def _diversity(results: Json, synced: list[Json]) -> list[Json]:
    """Diversity, as traces in the places of members, mean and merged weights."""
    return [
        trace
        for name, ours in _groups(results, synced)
        for trace in (
            _points(f"members{name}", [], "top1", 1.0),
            _diversity_line(f"cosine{name}", ours, "cosine", 2),
            _diversity_line(f"disagreement{name}", ours, "disagreement", 4),
        )
    ]


def _diversity_line(name: str, ours: list[Json], key: str, width: int) -> Json:
    color = INGREDIENT if width == 2 else ENSEMBLE
    line = _line(name, ours, [one["diversity"][key] for one in ours], width)
    return {**line, "line": {"width": 2, "color": color}}


def _table(results: Json, synced: list[Json]) -> Table:
    """A row per round; the column `of` if there are several groups."""
    groups = list(_groups(results, synced))
    columns = [Column("round", is_number=True), Column("of"), Column("members")]
    columns += [Column("mean of members, %", is_number=True), Column("merged, %", is_number=True)]
    columns += [Column("outcome")]
    lines = [_round_cells(one, name.removeprefix(", ")) for name, ours in groups for one in ours]
    if len(groups) < 2:
        columns.pop(1)
        lines = [[first, *rest] for first, _, *rest in lines]
    return Table(columns, [TableRow(cells) for cells in lines])


def _round_cells(one: Json, group: str) -> list[Cell]:
    means = (_mean_score(one, "top1", 100.0), _merged_score(one, "top1", 100.0))
    num_used = sum(member["merged"] for member in one["participants"])
    left_out = [f"without {run['run']}: {run['reason']}" for run in one["left_out"]]
    return [
        number(str(one["round"])),
        Cell(group),
        Cell(f"{num_used} of {len(one['participants'])}"),
        *(number(format.UNKNOWN if mean is None else f"{mean:.2f}") for mean in means),
        Cell("; ".join([one["reason"], *left_out])),
    ]
