"""Paths: the score of each step a recipe took, and whether it was accepted."""

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    BETTER,
    PAPER,
    SOFT,
    WORSE,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    layout_of,
    selection_value,
)

_ID = "paths"
_CAPTION = (
    "What a recipe tried, in its order. Filled: accepted; hollow: refused; a triangle pointing "
    "down: stopped early, the score is at most this. The line is the score of the soup as it "
    "stood; that of wise_ft is its curve from the base (alpha 0) to the fine-tuned model (1). All "
    "on the selection split, which chose and therefore flatters."
)


def selection_steps_figure(results: Json) -> FigureOrReason:
    """One view per recipe that tasted something; the served one first."""
    soups = sorted(results["soups"], key=lambda soup: soup["id"] != results["served"])
    tried = [(soup, steps) for soup in soups if len(steps := _steps(soup)) > 1]
    if not tried:
        return MissingFigure(_ID, "no recipe took more than one decision by a score")
    views = [_view(results, steps) for _, steps in tried]
    metric = results["metric"]
    title = f"{format.METRIC_NAMES[metric]} on {results['selection']}, {format.unit(metric)}"
    layout = layout_of(
        420,
        xaxis={"type": "category", "tickangle": -40, "showgrid": False},
        yaxis={"title": {"text": title}},
        hovermode="closest",
        showlegend=False,
    )
    choices = tuple(
        FigureView(format.soup_label(results, soup), view)
        for (soup, _), view in zip(tried, views, strict=True)
    )
    return Figure(_ID, _CAPTION, views[0], layout, choices if len(choices) > 1 else ())


def _steps(soup: Json) -> list[Json]:
    """Decisions that a score was known for."""
    return [each for each in soup["decisions"] if _reached(each) is not None]


def _reached(decision: Json) -> float | None:
    value: float | None = decision["after"]
    return decision["at_most"] if value is None else value


def _view(results: Json, steps: list[Json]) -> list[Json]:
    metric = results["metric"]
    names = [f"{i + 1} · {format.candidate(each)}" for i, each in enumerate(steps)]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "soup so far",
            "x": names,
            "y": [selection_value(each, metric) for each in _standing(steps)],
            "line": {"color": SOFT, "width": 2, "shape": _shape(steps)},
            "hoverinfo": "skip",
            "connectgaps": True,
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "candidates",
            "x": names,
            "y": [selection_value(_reached(each), metric) for each in steps],
            "customdata": [_told(results, each) for each in steps],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "size": 11,
                "color": [BETTER if each["accepted"] else PAPER for each in steps],
                "symbol": [
                    "circle" if each["after"] is not None else "triangle-down" for each in steps
                ],
                "line": {
                    "width": 2,
                    "color": [BETTER if each["accepted"] else WORSE for each in steps],
                },
            },
        },
    ]


def _standing(steps: list[Json]) -> list[float | None]:
    """Score of the soup after each step; of each step itself where nothing stood before it."""
    if all(each["before"] is None for each in steps):
        return [each["after"] for each in steps]
    return [each["after"] if each["accepted"] else each["before"] for each in steps]


def _shape(steps: list[Json]) -> str:
    return "linear" if all(each["before"] is None for each in steps) else "hv"


def _told(results: Json, decision: Json) -> str:
    about = next(
        (format.about_run(run) for run in results["runs"] if run["id"] == decision["run"]), ""
    )
    said = "accepted" if decision["accepted"] else "refused"
    lines = [f"<b>{format.candidate(decision)}</b> {said}", about, decision["reason"]]
    return "<br>".join(line for line in lines if line)
