"""A figure of the report: a plain value that plotly.js draws in the reader's browser.

Colours are names of the page's style sheet, which has them for light and for dark; the page puts
them in as it draws. One meaning has one colour, in every figure and table.
"""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.report import words
from orchestrator.report.words import Json
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
class Choice:
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
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Absent:
    """A figure that cannot be drawn, and why."""

    id: str
    why: str


Drawing = Figure | Absent


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
    return 100 * value if words.is_fraction(metric) else value


def selection(value: float | None, metric: str) -> float | None:
    """A number that recipes maximise, on the axis of its metric."""
    if value is None or value <= WORST:
        return None
    return scaled(-value if metric == "nll" else value, metric)
