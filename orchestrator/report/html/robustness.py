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
WIDTH, HEIGHT = 1080, 500
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


def robustness_figures(known: Json, rows: Iterable[Row]) -> tuple[FigureOrReason, ...]:
    """A point per model, test across and an OOD split upwards; nothing without such splits."""
    splits = format.splits_of(known)
    shifted = [name for name in splits if name.startswith("ood:")]
    return (_scatter(known, rows, shifted),) if "test" in splits and shifted else ()


def _scatter(known: Json, rows: Iterable[Row], shifted: list[str]) -> FigureOrReason:
    models = list(rows)
    soups = [soup for soup in known["soups"] if soup["curve"]]
    views = [_view(known, models, soups, split) for split in shifted]
    if not any(views):
        return MissingFigure(
            _ID, "no model has been scored on test and on an out-of-distribution split"
        )
    metric = known["metric"]
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


def _view(known: Json, rows: list[Row], soups: list[Json], split: str) -> list[Json]:
    points = [point for row in rows if (point := _point(known, row, split)) is not None]
    if not points:
        return []
    curves = [_curve(known, soup, split) for soup in soups]
    passed = [at for drawn in curves for at in zip(drawn["x"], drawn["y"], strict=True)]
    return [*curves, *traces(points, WIDTH, HEIGHT - 130, around=passed)]


def _point(known: Json, row: Row, split: str) -> ModelPoint | None:
    at = _place(known, row.scores, split)
    return None if at is None else ModelPoint(row, *at[:2], f"{row.about}<br>{at[2]}")


def _place(known: Json, scores: Json, split: str) -> tuple[float, float, str] | None:
    """(test, shifted, both in words); None unless scored on both."""
    metric = known["metric"]
    inside, outside = (format.score_of(scores, name, metric) for name in ("test", split))
    if inside is None or outside is None:
        return None
    x, y = scaled(inside, metric), scaled(outside, metric)
    assert x is not None and y is not None
    unit = format.unit(metric)
    shown = [format.score_text(value, metric) for value in (inside, outside)]
    said = f"test {shown[0]} {unit}, {split} {shown[1]} {unit}"
    return x, y, said


def _curve(known: Json, soup: Json, split: str) -> Json:
    """A line through what was scored of a recipe's way, below the models."""
    placed = [(each["alpha"], _place(known, each["scores"], split)) for each in soup["curve"]]
    points = [(alpha, *at) for alpha, at in sorted(placed, key=lambda each: each[0]) if at]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{format.soup_label(known, soup)}, alpha 0 to 1",
        "x": [x for _, x, _, _ in points],
        "y": [y for _, _, y, _ in points],
        "customdata": [f"<b>alpha {alpha:g}</b><br>{said}" for alpha, _, _, said in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "line": {"dash": "dot", "width": 1.5, "color": BASE},
        "marker": {"size": 5, "color": BASE},
        "cliponaxis": False,
    }
