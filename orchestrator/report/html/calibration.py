"""Calibration: whether predictions made with 90 % confidence are right nine times in ten."""

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    FAINT,
    PAPER,
    SINGLE,
    SOUP,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    panel_axes,
    panels,
)

_ID = "reliability"
_CAPTION = (
    "Accuracy of the predictions made with a given confidence. On the dashed line the model is "
    "calibrated; below it the model is overconfident. The larger a point, the more images. Grey: "
    "as trained; in colour: after its logits were divided by one temperature, fitted on the "
    "selection split."
)


def detailed(analysis: Json) -> list[tuple[str, str, str]]:
    """(id, title, colour) of the models that are analysed in detail, the best single run first."""
    models = [
        (analysis["best_single"], "best single", SINGLE),
        (analysis["served"], "served soup", SOUP),
    ]
    ids = {id for split in analysis["splits"].values() for id in split["details"]}
    return [model for model in models if model[0] in ids]


def reported(analysis: Json) -> list[str]:
    """Splits with details, `test` first."""
    names = [name for name, split in analysis["splits"].items() if split["details"]]
    return sorted(names, key=lambda name: name != "test")


def reliability_figure(analysis: Json | None) -> FigureOrReason:
    """Best single run and served soup side by side, before and after temperature scaling."""
    if analysis is None:
        return MissingFigure(_ID, "there is no analysis.json yet")
    models, splits = detailed(analysis), reported(analysis)
    if not models or not splits:
        return MissingFigure(_ID, "no model is analysed in detail")
    temperature = {model["id"]: model["temperature"] for model in analysis["models"]}
    titles = [_title(title, temperature.get(id)) for id, title, _ in models]
    percent = {"range": [0, 102], "zeroline": False}
    layout = panels(
        titles,
        420,
        xaxis={**percent, "title": {"text": "confidence, %"}},
        yaxis={**percent, "title": {"text": "accuracy, %"}},
    )
    layout["showlegend"] = False
    views = {split: _view(analysis, models, split) for split in splits}
    choices = tuple(FigureView(split, view) for split, view in views.items())
    return Figure(_ID, _CAPTION, views[splits[0]], layout, choices if len(choices) > 1 else ())


def _title(title: str, temperature: float | None) -> str:
    return title if temperature is None else f"{title}, temperature {temperature:.2f}"


def _view(analysis: Json, models: list[tuple[str, str, str]], split: str) -> list[Json]:
    details = analysis["splits"][split]["details"]
    return [
        trace
        for i, (id, _, color) in enumerate(models)
        for trace in (
            _diagonal(i),
            *(
                _curve(details[id][key], name, tone, i)
                for key, name, tone in (
                    ("reliability", "as trained", FAINT),
                    ("reliability_scaled", "after temperature scaling", color),
                )
                if id in details
            ),
        )
    ]


def _diagonal(panel: int) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 100],
        "y": [0, 100],
        "line": {"dash": "dash", "width": 1, "color": FAINT},
        "hoverinfo": "skip",
        **panel_axes(panel),
    }


def _curve(reliability: Json, name: str, color: str, panel: int) -> Json:
    """A point per bin that is not empty."""
    bins = [
        (confidence, accuracy, count)
        for confidence, accuracy, count in zip(
            reliability["confidence"], reliability["accuracy"], reliability["count"], strict=True
        )
        if count and confidence is not None and accuracy is not None
    ]
    total = sum(count for _, _, count in bins) or 1
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [100 * confidence for confidence, _, _ in bins],
        "y": [100 * accuracy for _, accuracy, _ in bins],
        "customdata": [format.count_of(count, "image") for _, _, count in bins],
        "hovertemplate": f"{name}<br>confidence %{{x:.1f}} %, accuracy %{{y:.1f}} %<br>"
        "%{customdata}<extra></extra>",
        "line": {"width": 1.5, "color": color},
        "marker": {
            "color": color,
            "size": [5 + 19 * (count / total) ** 0.5 for _, _, count in bins],
            "line": {"width": 1, "color": PAPER},
        },
        **panel_axes(panel),
    }
