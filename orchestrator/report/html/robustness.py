"""Shift: accuracy on images like those of training against accuracy on others."""

from collections.abc import Iterable

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    BASE,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    ModelPoint,
    layout_of,
    scaled,
    traces,
)
from orchestrator.report.model_rows import Row

_ID = "robustness"
HEIGHT = 500
_CAPTION = (
    "Each point is a model: to the right it is better on test, upwards on the shifted data. A "
    "model above and to the right of another is better on both; the best single run is what a "
    "soup has to beat. Hover for numbers."
)
_CURVE_CAPTION = (
    " A dotted line is what a recipe passed on its way from the base (alpha 0) to the fine-tuned "
    "weights (1), scored when everything was chosen: where it runs above its ends, some alpha "
    "between is more robust than both."
)


def robustness_figures(results: Json, rows: Iterable[Row]) -> tuple[FigureOrReason, ...]:
    """A point per model, test across and an OOD split upwards; nothing without such splits."""
    splits = format.splits_of(results)
    shifted = [name for name in splits if name.startswith("ood:")]
    return (_scatter(results, rows, shifted),) if "test" in splits and shifted else ()


def _scatter(results: Json, rows: Iterable[Row], shifted: list[str]) -> FigureOrReason:
    models = list(rows)
    soups = [soup for soup in results["soups"] if soup["curve"]]
    views = [_view(results, models, soups, split) for split in shifted]
    if not any(views):
        return MissingFigure(
            _ID, "no model has been scored on test and on an out-of-distribution split"
        )
    metric = results["metric"]
    title = f"{format.METRIC_NAMES[metric]}, {format.unit(metric)}"
    layout = layout_of(
        HEIGHT,
        xaxis={"title": {"text": f"test {title}"}},
        yaxis={"title": {"text": f"{shifted[0]} {title}"}},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"t": 40},
    )
    choices = tuple(
        FigureView(split, view, {"yaxis": {"title": {"text": f"{split} {title}"}}})
        for split, view in zip(shifted, views, strict=True)
    )
    caption = _CAPTION + _CURVE_CAPTION * bool(soups)
    return Figure(_ID, caption, views[0], layout, choices if len(choices) > 1 else ())


def _view(results: Json, rows: list[Row], soups: list[Json], split: str) -> list[Json]:
    points = [point for row in rows if (point := _point(results, row, split)) is not None]
    if not points:
        return []
    curves = [_curve(results, soup, split) for soup in soups]
    return [*curves, *traces(points)]


def _point(results: Json, row: Row, split: str) -> ModelPoint | None:
    at = _place(results, row.scores, split)
    return None if at is None else ModelPoint(row, *at[:2], f"{row.about}<br>{at[2]}")


def _place(results: Json, scores: Json, split: str) -> tuple[float, float, str] | None:
    """(test, shifted, both in words); None unless scored on both."""
    metric = results["metric"]
    inside, outside = (format.score_of(scores, name, metric) for name in ("test", split))
    if inside is None or outside is None:
        return None
    x, y = scaled(inside, metric), scaled(outside, metric)
    assert x is not None and y is not None
    unit = format.unit(metric)
    shown = [format.score_text(value, metric) for value in (inside, outside)]
    said = f"test {shown[0]} {unit}, {split} {shown[1]} {unit}"
    return x, y, said


def _curve(results: Json, soup: Json, split: str) -> Json:
    """A line through what was scored of a recipe's way, below the models."""
    placed = [(each["alpha"], _place(results, each["scores"], split)) for each in soup["curve"]]
    points = [(alpha, *at) for alpha, at in sorted(placed, key=lambda each: each[0]) if at]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{format.soup_label(results, soup)}, alpha 0 to 1",
        "x": [x for _, x, _, _ in points],
        "y": [y for _, _, y, _ in points],
        "customdata": [f"<b>alpha {alpha:g}</b><br>{said}" for alpha, _, _, said in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "line": {"dash": "dot", "width": 1.5, "color": BASE},
        "marker": {"size": 5, "color": BASE},
        "cliponaxis": False,
    }
