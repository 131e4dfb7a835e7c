"""Robustness: the score on shifted data against the score on test."""

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
_HEIGHT = 500
_CAPTION = (
    "Each point is a model: further right is better on test, further up is better on the shifted "
    "data. A model above and to the right of another is better on both; a soup should beat the "
    "best single run. Hover for names and numbers."
)
_CURVE_CAPTION = (
    " A dotted line is the recipe's path from the base (alpha 0) to the fine-tuned weights (1), "
    "scored after everything was chosen. Where it is above both ends, an alpha in between is more "
    "robust than both."
)


def robustness_figures(results: Json, rows: Iterable[Row]) -> tuple[FigureOrReason, ...]:
    """A point per model: test on the x axis, an OOD split on the y axis. Empty without these."""
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
        _HEIGHT,
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
    """(test, shifted, both as text). None: not scored on both."""
    metric = results["metric"]
    inside, outside = (format.score_of(scores, name, metric) for name in ("test", split))
    if inside is None or outside is None:
        return None
    x, y = scaled(inside, metric), scaled(outside, metric)
    assert x is not None and y is not None
    unit = format.unit(metric)
    texts = [format.score_text(value, metric) for value in (inside, outside)]
    return x, y, f"test {texts[0]} {unit}, {split} {texts[1]} {unit}"


def _curve(results: Json, soup: Json, split: str) -> Json:
    """A line through the scored points of a recipe's path."""
    places = {point["alpha"]: _place(results, point["scores"], split) for point in soup["curve"]}
    points = [(alpha, *place) for alpha, place in sorted(places.items()) if place is not None]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{format.soup_label(results, soup)}, alpha 0 to 1",
        "x": [x for _, x, _, _ in points],
        "y": [y for _, _, y, _ in points],
        "customdata": [f"<b>alpha {alpha:g}</b><br>{text}" for alpha, _, _, text in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "line": {"dash": "dot", "width": 1.5, "color": BASE},
        "marker": {"size": 5, "color": BASE},
        "cliponaxis": False,
    }
