"""The map: models with similar predictions are near each other."""

from collections.abc import Iterable

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    ModelPoint,
    layout_of,
    traces,
)
from orchestrator.report.model_rows import Row

_ID = "map"
_HEIGHT = 540
POOR = 0.2
"""Stress that Kruskal calls poor."""
_CAPTION = (
    "Models with similar predictions are near each other (multidimensional scaling of the Jeffreys "
    "divergence between them). Only distances have a meaning, directions do not. A soup near the "
    "ensemble predicts as the ensemble does, at the cost of one model. Other soups and runs show "
    "their names on hover."
)


def model_map_figure(analysis: Json | None, rows: Iterable[Row]) -> FigureOrReason:
    """Ingredients, soups and ensembles; a view per split."""
    if analysis is None:
        return MissingFigure(_ID, "there is no analysis.json yet")
    by_model = {row.model: row for row in rows if row.model is not None}
    maps = {name: split["map"] for name, split in analysis["splits"].items() if split["map"]}
    if not maps:
        return MissingFigure(_ID, "it takes at least three models")
    first = "test" if "test" in maps else next(iter(maps))
    views = {
        name: _view(analysis, name, by_model) for name in [first, *(n for n in maps if n != first)]
    }
    layout = layout_of(
        _HEIGHT,
        xaxis={"title": {"text": "nats<sup>1/2</sup>"}, "zeroline": False},
        yaxis={"scaleanchor": "x", "zeroline": False},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"t": 40},
    )
    choices = tuple(FigureView(_title(name, maps[name]), view) for name, view in views.items())
    return Figure(_ID, _CAPTION + _quality(maps), views[first], layout, choices)


def _title(split: str, model_map: Json) -> str:
    return f"{split} (stress {model_map['stress']:.2f})"


def _quality(maps: Json) -> str:
    poor = [name for name, model_map in maps.items() if model_map["stress"] > POOR]
    if not poor:
        return " A stress of 0 is a perfect map."
    return f" With a stress above {POOR}, the map of {', '.join(poor)} is a rough one."


def _view(analysis: Json, split: str, by_model: dict[str, Row]) -> list[Json]:
    content = analysis["splits"][split]
    places = content["map"]
    points = [
        ModelPoint(by_model[id], x, y, _hover(content["models"].get(id), by_model[id], split))
        for id, x, y in zip(places["ids"], places["x"], places["y"], strict=True)
        if id in by_model
    ]
    return traces(points)


def _hover(scores: Json | None, row: Row, split: str) -> str:
    if scores is None:
        return row.about
    return f"{row.about}<br>{split}: {format.score_text(scores['top1'], 'top1')} %"
