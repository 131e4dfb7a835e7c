"""A figure of the report: a plain value that plotly.js draws in the reader's browser."""

from dataclasses import dataclass
from typing import Any

from orchestrator.report import words
from orchestrator.report.words import Json
from workers.types import WORST

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
GOOD, BAD, SOUP, OTHER = "#0b8457", "#c0392b", "#d9730d", "#52606d"
RUNS = (
    *("#4c78a8", "#72b7b2", "#b279a2", "#9d755d", "#54a24b", "#e45756"),
    *("#7f7f7f", "#ff9da6", "#8cd17d", "#499894", "#86bcb6", "#d4a6c8"),
)


@dataclass(frozen=True)
class Figure:
    """`data` and `layout` of plotly.js; `caption` says what to see."""

    id: str
    caption: str
    data: list[Json]
    layout: Json


def layout_of(height: int, **changes: Any) -> Json:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    base: Json = {
        "height": height,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "hoverlabel": {"align": "left"},
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
