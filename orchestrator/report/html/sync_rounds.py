"""Sync rounds: the merged weights against the members that they were made of."""

from collections.abc import Iterator
from html import escape
from statistics import mean

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    ENSEMBLE,
    INGREDIENT,
    SOUP,
    Figure,
    FigureOrReason,
    FigureView,
    layout_of,
)

_CAPTION = (
    "At the end of each round: every member before the merge (dots), their mean, and the merged "
    "weights that they went on from, or were pulled towards (thick). On the selection split. "
    "Diversity says whether the members still differ: the cosine of what two of them moved from "
    "the base (1: all one way), and the share of images that two of them label differently."
)


def round_parts(known: Json) -> tuple[str | FigureOrReason, ...]:
    """A figure and a table; nothing where no round merged."""
    synced = [each for each in known["rounds"] if each["mode"] == "sync"]
    if not any(each["participants"] for each in synced):
        return ()
    return _figure(known, synced), _table(known, synced)


def _figure(known: Json, synced: list[Json]) -> Figure:
    views = {
        "accuracy": _scored(known, synced, "top1", 100.0),
        "loss": _scored(known, synced, "nll", 1.0),
        "diversity": _spread(known, synced),
    }
    titles = {
        "accuracy": f"accuracy on {known['selection']}, %",
        "loss": f"negative log-likelihood on {known['selection']}, nats",
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


def _scored(known: Json, synced: list[Json], metric: str, scale: float) -> list[Json]:
    return [
        trace
        for name, ours in _circles(known, synced)
        for trace in (
            _points(f"members{name}", ours, metric, scale),
            _line(f"members' mean{name}", ours, [_mean(r, metric, scale) for r in ours], 2),
            _line(f"merged{name}", ours, [_of_merged(r, metric, scale) for r in ours], 4),
        )
    ]


def _circles(known: Json, synced: list[Json]) -> Iterator[tuple[str, list[Json]]]:
    """(what tells them apart, rounds) of each group of runs that were merged with one another."""
    circle_of = {each["id"]: each["id"].rpartition("-")[0] for each in synced}
    names = {cohort["id"]: cohort["name"] for cohort in known["cohorts"]}
    circles = list(dict.fromkeys(circle_of.values()))
    for circle in circles:
        ours = [each for each in synced if circle_of[each["id"]] == circle]
        fold = circle.partition("-fold")[2]
        told = f", {names.get(ours[0]['cohort'], '')}" + (f" fold {fold}" if fold else "")
        yield told if len(circles) > 1 else "", ours


def _points(name: str, ours: list[Json], metric: str, scale: float) -> Json:
    found = [
        (each["epoch"], scale * member["scores"][metric], member["run"])
        for each in ours
        for member in each["participants"]
        if member["scores"] is not None
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [epoch for epoch, _, _ in found],
        "y": [score for _, score, _ in found],
        "text": [run for _, _, run in found],
        "marker": {"size": 7, "color": INGREDIENT, "opacity": 0.7},
        "hovertemplate": "%{y:.3f}  %{text}<extra></extra>",
    }


def _line(name: str, ours: list[Json], values: list[float | None], width: int) -> Json:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [each["epoch"] for each in ours],
        "y": values,
        "text": [f"round {each['round']}: {each['reason']}" for each in ours],
        "line": {"width": width, "color": SOUP if width > 2 else INGREDIENT},
        "marker": {"size": 3 + width},
        "hovertemplate": "%{y:.3f}  <b>%{fullData.name}</b><br>%{text}<extra></extra>",
        "connectgaps": True,
    }


def _mean(one: Json, metric: str, scale: float) -> float | None:
    known = [each["scores"][metric] for each in one["participants"] if each["scores"] is not None]
    return scale * mean(known) if known else None


def _of_merged(one: Json, metric: str, scale: float) -> float | None:
    return None if one["merged"] is None else scale * one["merged"][metric]


def _spread(known: Json, synced: list[Json]) -> list[Json]:
    """In the places of the members, their mean and the merged weights."""
    return [
        trace
        for name, ours in _circles(known, synced)
        for trace in (
            _points(f"members{name}", [], "top1", 1.0),
            _of(f"cosine{name}", ours, "cosine", 2),
            _of(f"disagreement{name}", ours, "disagreement", 4),
        )
    ]


def _of(name: str, ours: list[Json], key: str, width: int) -> Json:
    color = INGREDIENT if width == 2 else ENSEMBLE
    line = _line(name, ours, [each["diversity"][key] for each in ours], width)
    return {**line, "line": {"width": 2, "color": color}}


def _table(known: Json, synced: list[Json]) -> str:
    """What became of each round, and who was left out."""
    several = len(list(_circles(known, synced))) > 1
    of = "<th>of</th>" if several else ""
    cells = (
        f'<th class="number">round</th>{of}<th>members</th><th class="number">their mean, %</th>'
        '<th class="number">merged, %</th><th>what came of it</th>'
    )
    lines = "".join(
        _row(one, name.removeprefix(", ") if several else None)
        for name, ours in _circles(known, synced)
        for one in ours
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _row(one: Json, circle: str | None) -> str:
    numbers = (_mean(one, "top1", 100.0), _of_merged(one, "top1", 100.0))
    shown = [format.UNKNOWN if each is None else f"{each:.2f}" for each in numbers]
    used = sum(each["merged"] for each in one["participants"])
    left_out = [f"without {each['run']}: {each['reason']}" for each in one["left_out"]]
    told = "; ".join([one["reason"], *left_out])
    apart = "" if circle is None else f"<td>{escape(circle)}</td>"
    return (
        f'<tr><td class="number">{one["round"]}</td>{apart}'
        f"<td>{used} of {len(one['participants'])}</td>"
        + "".join(f'<td class="number">{each}</td>' for each in shown)
        + f"<td>{escape(told)}</td></tr>"
    )
