"""Style of figures: layout, colours, markers of each kind of model, and panels.

A figure is a plain value that plotly.js draws in the reader's browser. Colours are names of the
style sheet, which defines them for light and dark pages. A kind of model has the same colour in
every figure and table.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.model_rows import Row
from workers.types import WORST

INK, SOFT, FAINT, GRID, PAPER = "--ink", "--soft", "--faint", "--line", "--paper"
BETTER, WORSE = "--better", "--worse"
INGREDIENT, SINGLE, SOUP, ENSEMBLE, BASE = (
    *("--ingredient", "--single", "--soup", "--ensemble"),
    "--base",
)
"""Runs, the best single run, soups, ensembles, and the base of all runs."""
RUNS = (
    *("#4c78a8", "#72b7b2", "#b279a2", "#9d755d", "#54a24b", "#e45756"),
    *("#7f7f7f", "#ff9da6", "#8cd17d", "#499894", "#86bcb6", "#d4a6c8"),
)
"""Colours of runs where each run is a line."""
SEQUENTIAL = [[0, PAPER], [1, SINGLE]]
DIVERGING = [[0, SINGLE], [0.5, PAPER], [1, SOUP]]
"""Colours below zero, at zero and above zero."""


@dataclass(frozen=True)
class FigureView:
    """A button above a figure. `data` updates the figure's traces by position, `layout` its layout
    one level deep."""

    label: str
    data: list[Json]
    layout: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """`data` and `layout` of plotly.js. The first choice, if any, is what they show already."""

    id: str
    caption: str
    """Explanation of the figure."""
    data: list[Json]
    layout: Json
    choices: tuple[FigureView, ...] = ()
    template: ClassVar[str] = "figure.html.j2"


@dataclass(frozen=True)
class MissingFigure:
    """A figure that cannot be drawn."""

    id: str
    why: str
    """Second half of a sentence, after `because`."""
    template: ClassVar[str] = "missing_figure.html.j2"


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
    """Percent of a fraction; nats unchanged."""
    if value is None:
        return None
    return 100 * value if format.is_fraction(metric) else value


def selection_value(value: float | None, metric: str) -> float | None:
    """A selection score, which recipes maximise, on the axis of its metric."""
    if value is None or value <= WORST:
        return None
    return scaled(-value if metric == "nll" else value, metric)


@dataclass(frozen=True)
class MarkerStyle:
    color: str
    symbol: str
    size: int
    name_position: str | None = None
    """Side of the point that its name is on. None: the name is shown on hover only."""


MARKERS = {
    "ingredients": MarkerStyle(INGREDIENT, "circle", 9),
    "best single": MarkerStyle(SINGLE, "circle", 12, "bottom center"),
    "soups": MarkerStyle(SOUP, "diamond", 10),
    "served soup": MarkerStyle(SOUP, "star", 16, "top center"),
    "ensembles": MarkerStyle(ENSEMBLE, "square", 10, "middle right"),
}
"""Marker by role, in drawing order."""


def role(row: Row) -> str:
    if row.kind == "run":
        return "best single" if row.is_best_single else "ingredients"
    if row.kind == "soup":
        return "served soup" if row.is_served else "soups"
    return "ensembles"


@dataclass(frozen=True)
class ModelPoint:
    """A model as a point of a scatter plot."""

    row: Row
    x: float
    y: float
    hover: str
    """HTML below the model's name."""


def traces(points: list[ModelPoint]) -> list[Json]:
    """One trace per role."""
    return [
        _trace(name, style, of_role)
        for name, style in MARKERS.items()
        if (of_role := [point for point in points if role(point.row) == name])
    ]


def _trace(name: str, style: MarkerStyle, points: list[ModelPoint]) -> Json:
    names: Json = {}
    if style.name_position is not None:
        names = {
            "text": [point.row.name for point in points],
            "textposition": style.name_position,
            "textfont": {"size": 11, "color": style.color},
        }
    return {
        "type": "scatter",
        "mode": "markers+text" if names else "markers",
        "name": name,
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        **names,
        "customdata": [f"<b>{title(point.row)}</b><br>{point.hover}" for point in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": style.color,
            "symbol": style.symbol,
            "size": style.size,
            "line": {"width": 1, "color": PAPER},
        },
        "cliponaxis": False,
    }


def title(row: Row) -> str:
    return f"{row.kind} {row.name}"


def panels(titles: list[str], height: int, gap: float = 0.09, **axes: Json) -> Json:
    """A layout with a pair of axes per title: xaxis and yaxis, xaxis2 and yaxis2, ... All panels
    get the `xaxis` and `yaxis` of `axes`."""
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
    """Suffix of the axis names of a panel in plotly."""
    return "" if index == 0 else str(index + 1)


def panel_axes(index: int) -> Json:
    """The axes that put a trace into a panel."""
    return {"xaxis": f"x{suffix(index)}", "yaxis": f"y{suffix(index)}"}


def panel_title(title: str, domain: list[float]) -> Json:
    """The title above a panel that spans `domain` of the width."""
    position = {"x": sum(domain) / 2, "y": 1, "xref": "paper", "yref": "paper"}
    anchor = {"xanchor": "center", "yanchor": "bottom"}
    return {"text": f"<b>{title}</b>", "showarrow": False, **position, **anchor}
