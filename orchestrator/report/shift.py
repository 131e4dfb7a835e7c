"""Shift: accuracy on images like those of training against accuracy on others."""

from collections.abc import Iterable

from orchestrator.report import words
from orchestrator.report.figures import Absent, Choice, Drawing, Figure, layout_of, scaled
from orchestrator.report.looks import Point, traces
from orchestrator.report.tables import Row
from orchestrator.report.words import Json

ID = "robustness"
WIDTH, HEIGHT = 1080, 500
CAPTION = (
    "Each point is a model: to the right it is better on test, upwards on the shifted data. A "
    "model above and to the right of another is better on both; the best single run is what a "
    "soup has to beat. Hover for numbers."
)
CURVE = " The dotted line is the WiSE-FT curve: weights between the base and the fine-tuned model."


def robustness(known: Json, rows: Iterable[Row]) -> Drawing:
    """A point per model, test across and an OOD split upwards."""
    splits = words.splits_of(known)
    shifted = [name for name in splits if name.startswith("ood:")]
    if "test" not in splits or not shifted:
        return Absent(ID, "there is no test split, or no out-of-distribution split (data.ood)")
    models = list(rows)
    views = [_view(known, models, split) for split in shifted]
    if not any(views):
        return Absent(ID, "no model has been scored on test and on an out-of-distribution split")
    metric = known["metric"]
    title = f"{words.METRICS[metric]}, {words.unit(metric)}"
    layout = layout_of(
        HEIGHT,
        xaxis={"title": {"text": f"test {title}"}},
        yaxis={"title": {"text": f"{shifted[0]} {title}"}},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"t": 40},
    )
    choices = tuple(
        Choice(split, view, {"yaxis": {"title": {"text": f"{split} {title}"}}})
        for split, view in zip(shifted, views, strict=True)
    )
    return Figure(ID, CAPTION, views[0], layout, choices if len(choices) > 1 else ())


def _view(known: Json, rows: list[Row], split: str) -> list[Json]:
    points = [point for row in rows if (point := _point(known, row, split)) is not None]
    return traces(points, WIDTH, HEIGHT - 130) if points else []


def _point(known: Json, row: Row, split: str) -> Point | None:
    metric = known["metric"]
    inside, outside = (words.score_of(row.scores, name, metric) for name in ("test", split))
    if inside is None or outside is None:
        return None
    x, y = scaled(inside, metric), scaled(outside, metric)
    assert x is not None and y is not None
    unit = words.unit(metric)
    hover = (
        f"{row.about}<br>test {words.shown(inside, metric)} {unit}, "
        f"{split} {words.shown(outside, metric)} {unit}"
    )
    return Point(row, x, y, hover)
