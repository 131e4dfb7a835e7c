"""Differences of soups and ensembles to the best single run."""

from collections.abc import Iterable

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    FAINT,
    INK,
    MARKERS,
    Figure,
    FigureOrReason,
    MissingFigure,
    layout_of,
    panel_title,
    role,
)
from orchestrator.report.model_rows import Row


def differences_figure(results: Json, rows: Iterable[Row]) -> FigureOrReason:
    """Soups and ensembles against the best single run, a panel per split, with intervals."""
    splits = format.splits_of(results)
    models = [row for row in rows if row.deltas]
    if not models:
        return MissingFigure("differences", "no soup or ensemble has been compared yet")
    width, gap = 1 / len(splits), 0.03
    layout = layout_of(110 + 34 * len(models), margin={"t": 34, "l": 150}, showlegend=False)
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "type": "category"}
    layout["annotations"] = []
    data = []
    for index, split in enumerate(splits):
        axis = "" if index == 0 else str(index + 1)
        domain = [index * width + (gap / 2 if index else 0), (index + 1) * width - gap / 2]
        unit = format.difference_unit(results["metric"])
        title = {"text": f"{unit} to best single", "font": {"size": 12}}
        zero = {"zeroline": True, "zerolinecolor": INK, "zerolinewidth": 1.5}
        layout[f"xaxis{axis}"] = {**layout["xaxis"], **zero, "domain": domain, "title": title}
        layout["annotations"].append(panel_title(split, domain))
        data.append(_panel(models, split, f"x{axis}"))
    caption = (
        "Difference to the best single run with its paired 95 % bootstrap interval. A difference "
        "whose interval contains zero is not significant. The selection split chose the models, so "
        "it flatters them."
    )
    return Figure("differences", caption, data, layout)


def _panel(models: list[Row], split: str, axis: str) -> Json:
    shown = [(row, row.deltas[split]) for row in models if split in row.deltas]
    scale = [100 if format.is_fraction(delta["metric"]) else 1 for _, delta in shown]
    points = [by * delta["delta"] for by, (_, delta) in zip(scale, shown, strict=True)]
    lows = [by * delta["ci95"][0] for by, (_, delta) in zip(scale, shown, strict=True)]
    highs = [by * delta["ci95"][1] for by, (_, delta) in zip(scale, shown, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": split,
        "xaxis": axis,
        "y": [f"{row.kind} {row.name}" for row, _ in shown],
        "x": points,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - point for high, point in zip(highs, points, strict=True)],
            "arrayminus": [point - low for low, point in zip(lows, points, strict=True)],
            "color": FAINT,
            "thickness": 2,
        },
        "marker": {
            "opacity": 1,
            "size": [MARKERS[role(row)].size for row, _ in shown],
            "color": [MARKERS[role(row)].color for row, _ in shown],
            "symbol": [MARKERS[role(row)].symbol for row, _ in shown],
        },
        "text": [format.interval(delta) for _, delta in shown],
        "hovertemplate": "%{text}<extra></extra>",
    }
