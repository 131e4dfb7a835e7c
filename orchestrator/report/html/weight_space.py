"""Geometry: where ingredients lie in weight space, and the way from the best one to the soup."""

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    DIVERGING,
    SINGLE,
    SOFT,
    SOUP,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    layout_of,
    selection_value,
)

COSINES, BARRIER = "cosines", "barrier"
_MAX_LABELLED_ROWS = 24
ABOUT_COSINES = (
    "The angle between what two runs learned: the cosine of their displacements from the base. 1: "
    "the same direction; 0: nothing in common. Runs that resemble no other are rarely worth "
    "averaging. The number beside a run is how far it went from the base. A view per component "
    "shows where in the model runs agree."
)
ABOUT_BARRIER = (
    "The straight way in weight space from the best single run (left) to the served soup (right). "
    "If the line does not dip, both lie in one basin of the loss, which is what makes averaging "
    "work."
)


def cosines_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Ingredients x ingredients: all weights together, then component by component."""
    if analysis is None:
        return MissingFigure(COSINES, "there is no analysis.json yet")
    views = [view for each in analysis["geometry"] for view in _views(results, each, analysis)]
    if not views:
        return MissingFigure(COSINES, "it takes a cohort of at least two runs that share a base")
    size = max(len(each["ids"]) for each in analysis["geometry"])
    layout = layout_of(
        150 + 30 * size,
        xaxis={"type": "category", "showgrid": False, "tickangle": -40},
        yaxis={"type": "category", "showgrid": False, "autorange": "reversed"},
    )
    choices = tuple(FigureView(label, [trace]) for label, trace in views)
    first = [views[0][1]]
    return Figure(COSINES, ABOUT_COSINES, first, layout, choices if len(choices) > 1 else ())


def _views(results: Json, found: Json, analysis: Json) -> list[tuple[str, Json]]:
    """(label, heatmap) of a cohort."""
    names = {cohort["id"]: cohort["name"] for cohort in results["cohorts"]}
    whose = f" of {names[found['cohort']]}" if len(analysis["geometry"]) > 1 else ""
    ids, labels = found["ids"], [format.model_name(results, each) for each in found["ids"]]
    parts = [(f"all weights{whose}", found)]
    parts += [((each["prefix"] or "the rest") + whose, each) for each in found["components"]]
    return [(label, _heatmap(results, ids, labels, part)) for label, part in parts]


def _heatmap(results: Json, ids: list[str], labels: list[str], part: Json) -> Json:
    rows = [
        f"{label} · {distance:.3g}"
        for label, distance in zip(labels, part["distance"], strict=True)
    ]
    values = part["cosines"]
    is_written = len(ids) <= _MAX_LABELLED_ROWS
    return {
        "type": "heatmap",
        "x": [format.short_name(results, each) for each in ids],
        "y": rows,
        "z": values,
        **({"texttemplate": "%{z:.2f}"} if is_written else {}),
        "zmin": -1,
        "zmax": 1,
        "colorscale": DIVERGING,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "%{y}<br>%{x}<br>cosine %{z:.4f}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 11}},
    }


def barrier_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Selection score on the way from the best single model to the served soup."""
    found = analysis["barrier"] if analysis is not None else None
    if found is None:
        return MissingFigure(BARRIER, "there is no soup other than the best single run to go to")
    metric = results["metric"]
    scores = [selection_value(each, metric) for each in found["score"]]
    layout = layout_of(
        300,
        xaxis={"title": {"text": "part of the way from the best single run to the served soup"}},
        yaxis={"title": {"text": f"{format.METRIC_NAMES[metric]} on val, {format.unit(metric)}"}},
        showlegend=False,
    )
    ends = [SINGLE, *[SOFT] * (len(scores) - 2), SOUP]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": found["fraction"],
        "y": scores,
        "line": {"width": 2, "color": SOFT},
        "marker": {"opacity": 1, "color": ends, "size": [13, *[7] * (len(scores) - 2), 13]},
        "hovertemplate": "%{x:.2f} of the way: %{y:.2f}<extra></extra>",
    }
    said = _said(found["height"], metric)
    return Figure(BARRIER, ABOUT_BARRIER + said, [line], layout)


def _said(height: float | None, metric: str) -> str:
    if height is None:
        return ""
    if height <= 0:
        return " Here nothing on the way is worse than the worse end: there is no barrier."
    by = format.with_sign(height, metric).lstrip("+")
    return f" Here the way dips {by} {format.difference_unit(metric)} below the worse end."
