"""Calibration: whether a model that says 90 % is right nine times in ten."""

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
    "Across: how sure the model is; up: how often it is right then. On the dashed line its "
    "confidence can be taken at its word; below it the model is too sure of itself. The larger a "
    "point, the more images. Grey: as trained; in colour: after its logits were divided by one "
    "temperature, fitted on the selection split."
)


def detailed(analysis: Json) -> list[tuple[str, str, str]]:
    """(id, title, colour) of the models that are analysed in detail, the best single one first."""
    single, served = analysis["best_single"], analysis["served"]
    every = [each["details"] for each in analysis["splits"].values()]
    models = [(single, "best single", SINGLE), (served, "served soup", SOUP)]
    return [each for each in models if any(each[0] in details for details in every)]


def reported(analysis: Json) -> list[str]:
    """Splits with details, the one that judges first."""
    names = [name for name, each in analysis["splits"].items() if each["details"]]
    return sorted(names, key=lambda name: name != "test")


def reliability_figure(analysis: Json | None) -> FigureOrReason:
    """Best single and served soup side by side, before and after their temperature."""
    if analysis is None:
        return MissingFigure(_ID, "there is no analysis.json yet")
    models, splits = detailed(analysis), reported(analysis)
    if not models or not splits:
        return MissingFigure(_ID, "no model is analysed in detail")
    temperature = {each["id"]: each["temperature"] for each in analysis["models"]}
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
                    ("reliability_scaled", "after its temperature", color),
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


def _curve(found: Json, name: str, color: str, panel: int) -> Json:
    """Its bins, without the empty ones."""
    bins = [
        (confidence, accuracy, count)
        for confidence, accuracy, count in zip(
            found["confidence"], found["accuracy"], found["count"], strict=True
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
