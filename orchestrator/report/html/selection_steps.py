"""Selection steps: the score of each step of a recipe, and whether it was accepted."""

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
    "The candidates of a recipe, in its order. Filled: accepted; hollow: refused; a triangle "
    "pointing down: stopped early, the score is at most this. The line is the score of the soup so "
    "far; for wise_ft it is the curve from the base (alpha 0) to the fine-tuned model (1). All on "
    "the selection split, which chose the soup and therefore flatters it."
)


def selection_steps_figure(results: Json) -> FigureOrReason:
    """A view per recipe that decided by scores; the served one first."""
    soups = sorted(results["soups"], key=lambda soup: soup["id"] != results["served"])
    paths = [(soup, steps) for soup in soups if len(steps := _steps(soup)) > 1]
    if not paths:
        return MissingFigure(_ID, "no recipe took more than one decision by a score")
    views = [_view(results, steps) for _, steps in paths]
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
        for (soup, _), view in zip(paths, views, strict=True)
    )
    return Figure(_ID, _CAPTION, views[0], layout, choices if len(choices) > 1 else ())


def _steps(soup: Json) -> list[Json]:
    """Decisions with a score or a bound."""
    return [decision for decision in soup["decisions"] if _reached(decision) is not None]


def _reached(decision: Json) -> float | None:
    value: float | None = decision["after"]
    return decision["at_most"] if value is None else value


def _view(results: Json, steps: list[Json]) -> list[Json]:
    metric = results["metric"]
    names = [f"{i + 1} · {format.candidate(step)}" for i, step in enumerate(steps)]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "soup so far",
            "x": names,
            "y": [selection_value(score, metric) for score in _scores_so_far(steps)],
            "line": {"color": SOFT, "width": 2, "shape": "linear" if _is_curve(steps) else "hv"},
            "hoverinfo": "skip",
            "connectgaps": True,
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "candidates",
            "x": names,
            "y": [selection_value(_reached(step), metric) for step in steps],
            "customdata": [_hover(results, step) for step in steps],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "size": 11,
                "color": [BETTER if step["accepted"] else PAPER for step in steps],
                "symbol": [
                    "circle" if step["after"] is not None else "triangle-down" for step in steps
                ],
                "line": {
                    "width": 2,
                    "color": [BETTER if step["accepted"] else WORSE for step in steps],
                },
            },
        },
    ]


def _scores_so_far(steps: list[Json]) -> list[float | None]:
    """Score of the soup after each step; of the step itself if the recipe compares no soups."""
    if _is_curve(steps):
        return [step["after"] for step in steps]
    return [step["after"] if step["accepted"] else step["before"] for step in steps]


def _is_curve(steps: list[Json]) -> bool:
    return all(step["before"] is None for step in steps)


def _hover(results: Json, decision: Json) -> str:
    about = next(
        (format.about_run(run) for run in results["runs"] if run["id"] == decision["run"]), ""
    )
    outcome = "accepted" if decision["accepted"] else "refused"
    lines = [f"<b>{format.candidate(decision)}</b> {outcome}", about, decision["reason"]]
    return "<br>".join(line for line in lines if line)
