"""How figures look: layout, colours, marks of each kind of model, and panels.

A figure is a plain value that plotly.js draws in the reader's browser. Colours are names of the
page's style sheet, which has them for light and for dark; the page puts them in as it draws. One
meaning has one colour, in every figure and table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.labels import Spot, placed
from orchestrator.report.model_rows import Row
from workers.types import WORST

INK, SOFT, FAINT, GRID, PAPER = "--ink", "--soft", "--faint", "--line", "--paper"
BETTER, WORSE = "--better", "--worse"
INGREDIENT, SINGLE, SOUP, ENSEMBLE, BASE = (
    *("--ingredient", "--single", "--soup", "--ensemble"),
    "--base",
)
"""Runs, the best single one, soups, ensembles, and what all runs began from."""
RUNS = (
    *("#4c78a8", "#72b7b2", "#b279a2", "#9d755d", "#54a24b", "#e45756"),
    *("#7f7f7f", "#ff9da6", "#8cd17d", "#499894", "#86bcb6", "#d4a6c8"),
)
"""To tell runs apart where each is a line."""
SEQUENTIAL = [[0, PAPER], [1, SINGLE]]
DIVERGING = [[0, SINGLE], [0.5, PAPER], [1, SOUP]]
"""Below zero, zero, above zero."""


@dataclass(frozen=True)
class FigureView:
    """A button over a figure, and what it shows: each of these traces is laid over the figure's
    trace in the same place, and `layout` over its layout, one level deep."""

    label: str
    data: list[Json]
    layout: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """`data` and `layout` of plotly.js; `caption` says how to read it. The first choice, if there
    are any, is what `data` and `layout` show already."""

    id: str
    caption: str
    data: list[Json]
    layout: Json
    choices: tuple[FigureView, ...] = ()


@dataclass(frozen=True)
class MissingFigure:
    """A figure that cannot be drawn, and why."""

    id: str
    why: str


FigureOrReason = Figure | MissingFigure


def layout_of(height: int, **changes: Any) -> Json:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    base: Json = {
        "height": height,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "hoverlabel": {"align": "left", "font": {"family": "system-ui, sans-serif"}},
        "legend": {"orientation": "v", "x": 1.01, "y": 1, "font": {"size": 12}},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


def scaled(value: float | None, metric: str) -> float | None:
    """Percent of a fraction; nats as they are."""
    if value is None:
        return None
    return 100 * value if format.is_fraction(metric) else value


def selection_value(value: float | None, metric: str) -> float | None:
    """A number that recipes maximise, on the axis of its metric."""
    if value is None or value <= WORST:
        return None
    return scaled(-value if metric == "nll" else value, metric)


@dataclass(frozen=True)
class MarkerStyle:
    color: str
    symbol: str
    size: int


MARKERS = {
    "ingredients": MarkerStyle(INGREDIENT, "circle", 9),
    "best single": MarkerStyle(SINGLE, "circle", 12),
    "soups": MarkerStyle(SOUP, "diamond", 10),
    "served soup": MarkerStyle(SOUP, "star", 16),
    "ensembles": MarkerStyle(ENSEMBLE, "square", 10),
}
"""By role; drawn in this order."""


def role(row: Row) -> str:
    if row.kind == "run":
        return "best single" if row.is_best_single else "ingredients"
    if row.kind == "soup":
        return "served soup" if row.is_served else "soups"
    return "ensembles"


@dataclass(frozen=True)
class ModelPoint:
    """A model somewhere in a plane."""

    row: Row
    x: float
    y: float
    hover: str
    """HTML, below the model's name."""


def traces(
    points: list[ModelPoint],
    width: float,
    height: float,
    same_scale: bool = False,
    around: Sequence[tuple[float, float]] = (),
) -> list[Json]:
    """One trace per role. Labels of all but the ingredients stand where there is room for them, in
    a plot of about `width` by `height` pixels that also shows what lies `around`; without room,
    hovering tells."""
    important = sorted(points, key=lambda each: -MARKERS[role(each.row)].size)
    spots = [Spot(each.x, each.y, _label(each.row)) for each in important]
    spots += [Spot(x, y, "") for x, y in around]
    ways = placed(spots, width, height, same_scale)
    where = dict(zip(map(id, important), ways, strict=False))
    return [
        _trace(name, look, ours, [where[id(each)] for each in ours])
        for name, look in MARKERS.items()
        if (ours := [each for each in points if role(each.row) == name])
    ]


def _label(row: Row) -> str:
    return "" if role(row) == "ingredients" else row.name


def _trace(name: str, look: MarkerStyle, points: list[ModelPoint], where: list[str | None]) -> Json:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [each.x for each in points],
        "y": [each.y for each in points],
        "text": [
            _label(each.row) if at is not None else ""
            for each, at in zip(points, where, strict=True)
        ],
        "textposition": [at or "top center" for at in where],
        "textfont": {"size": 11, "color": look.color},
        "customdata": [f"<b>{title(each.row)}</b><br>{each.hover}" for each in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": look.color,
            "symbol": look.symbol,
            "size": look.size,
            "line": {"width": 1, "color": PAPER},
        },
        "cliponaxis": False,
    }


def title(row: Row) -> str:
    return f"{row.kind} {row.name}"


def panels(titles: list[str], height: int, gap: float = 0.09, **axes: Json) -> Json:
    """A layout with a pair of axes per title: xaxis and yaxis, xaxis2 and yaxis2, ... `axes` may
    hold `xaxis` and `yaxis`, which all panels get."""
    layout = layout_of(height, margin={"t": 34}, **axes)
    width = (1 - gap * (len(titles) - 1)) / len(titles)
    layout["annotations"] = []
    base_x, base_y = layout["xaxis"], layout["yaxis"]
    for i, title in enumerate(titles):
        number = suffix(i)
        domain = [i * (width + gap), i * (width + gap) + width]
        layout[f"xaxis{number}"] = {**base_x, "domain": domain, "anchor": f"y{number}"}
        layout[f"yaxis{number}"] = {**base_y, "anchor": f"x{number}"}
        layout["annotations"].append(panel_title(title, domain))
    return layout


def suffix(index: int) -> str:
    """What plotly calls the axes of that panel."""
    return "" if index == 0 else str(index + 1)


def panel_axes(index: int) -> Json:
    """For a trace: which panel it is in."""
    return {"xaxis": f"x{suffix(index)}", "yaxis": f"y{suffix(index)}"}


def panel_title(title: str, domain: list[float]) -> Json:
    """The title of the panel with that part of the width."""
    where = {"x": sum(domain) / 2, "y": 1, "xref": "paper", "yref": "paper"}
    anchor = {"xanchor": "center", "yanchor": "bottom"}
    return {"text": f"<b>{title}</b>", "showarrow": False, **where, **anchor}
