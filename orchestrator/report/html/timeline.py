"""The timeline: the orders that each slot performed."""

from collections import defaultdict

from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    FAINT,
    PAPER,
    RUNS,
    SOUP,
    Figure,
    FigureOrReason,
    MissingFigure,
    layout_of,
)
from orchestrator.state.state import State

COLORS = {
    "train": RUNS[0],
    "taste": SOUP,
    "blend": RUNS[4],
    "score": RUNS[2],
    "point": RUNS[8],
    "base": RUNS[3],
    "merge": RUNS[10],
    "gradient": RUNS[1],
    "geometry": RUNS[7],
    "analyse": RUNS[9],
}
"""Colours by kind of order. All other kinds are `other`."""

MAX_BARS = 5000


def timeline(state: State) -> FigureOrReason:
    """A bar per order that ended, a row per slot."""
    intervals = state.slot_use.intervals
    if not intervals:
        return MissingFigure("timeline", "no order has ended yet")
    bars = defaultdict(list)
    for slot, order, begin, end in intervals[-MAX_BARS:]:
        bars[_kind(order)].append((slot, begin, end, order))
    slots = {slot for slot, _, _, _ in intervals}
    layout = layout_of(
        136 + 30 * len(slots),
        xaxis={"title": {"text": "minutes since the start"}, "rangemode": "tozero"},
        yaxis={"type": "category", "categoryorder": "category descending", "showgrid": False},
        barmode="overlay",
        bargap=0.25,
        margin={"l": 90, "t": 46},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    began = state.began_at or 0.0
    data = [_bars(kind, bars[kind], began) for kind in (*COLORS, "other") if kind in bars]
    caption = "The orders of each slot. A gap is time without work, or work that was lost."
    return Figure("timeline", caption, data, layout)


def _kind(order: str) -> str:
    kind = order.partition("-")[0]
    return kind if kind in COLORS else "other"


def _bars(kind: str, bars: list[tuple[str, float, float, str]], began: float) -> Json:
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "y": [slot for slot, _, _, _ in bars],
        "base": [(begin - began) / 60 for _, begin, _, _ in bars],
        "x": [(end - begin) / 60 for _, begin, end, _ in bars],
        "text": [order for _, _, _, order in bars],
        "textposition": "none",
        "marker": {"color": COLORS.get(kind, FAINT), "line": {"width": 0.5, "color": PAPER}},
        "hovertemplate": "%{text}<br>%{x:.2f} min<extra></extra>",
    }
