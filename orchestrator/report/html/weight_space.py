"""Weight space: cosines of the ingredients' displacements, and the barrier to the soup."""

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
    "The cosine of the displacements of two runs from the base. 1: the same direction; 0: nothing "
    "in common. Runs that resemble no other are rarely worth averaging. The number beside a run is "
    "its distance from the base. A view per component shows in which parts of the model runs agree."
)
ABOUT_BARRIER = (
    "The straight line in weight space from the best single run (left) to the served soup (right). "
    "If the score does not dip, both are in one basin of the loss, so averaging works."
)


def cosines_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Ingredients x ingredients: a view of all weights together, and one per component."""
    if analysis is None:
        return MissingFigure(COSINES, "there is no analysis.json yet")
    cohorts = analysis["geometry"]
    views = [view for cohort in cohorts for view in _views(results, cohort, len(cohorts))]
    if not views:
        return MissingFigure(COSINES, "it takes a cohort of at least two runs that share a base")
    size = max(len(cohort["ids"]) for cohort in cohorts)
    layout = layout_of(
        150 + 30 * size,
        xaxis={"type": "category", "showgrid": False, "tickangle": -40},
        yaxis={"type": "category", "showgrid": False, "autorange": "reversed"},
    )
    choices = tuple(FigureView(label, [trace]) for label, trace in views)
    first = [views[0][1]]
    return Figure(COSINES, ABOUT_COSINES, first, layout, choices if len(choices) > 1 else ())


def _views(results: Json, geometry: Json, num_cohorts: int) -> list[tuple[str, Json]]:
    """(label, heatmap) of a cohort."""
    names = {cohort["id"]: cohort["name"] for cohort in results["cohorts"]}
    cohort = f" of {names[geometry['cohort']]}" if num_cohorts > 1 else ""
    ids = geometry["ids"]
    labels = [format.model_name(results, id) for id in ids]
    parts = [("all weights", geometry)]
    parts += [(part["prefix"] or "the rest", part) for part in geometry["components"]]
    return [(name + cohort, _heatmap(results, ids, labels, part)) for name, part in parts]


def _heatmap(results: Json, ids: list[str], labels: list[str], part: Json) -> Json:
    rows = [
        f"{label} · {distance:.3g}"
        for label, distance in zip(labels, part["distance"], strict=True)
    ]
    values = part["cosines"]
    has_numbers = len(ids) <= _MAX_LABELLED_ROWS
    return {
        "type": "heatmap",
        "x": [format.short_name(results, id) for id in ids],
        "y": rows,
        "z": values,
        **({"texttemplate": "%{z:.2f}"} if has_numbers else {}),
        "zmin": -1,
        "zmax": 1,
        "colorscale": DIVERGING,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "%{y}<br>%{x}<br>cosine %{z:.4f}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 11}},
    }


def barrier_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Selection score on the line from the best single run to the served soup."""
    barrier = analysis["barrier"] if analysis is not None else None
    if barrier is None:
        return MissingFigure(BARRIER, "no soup other than the best single run is served")
    metric = results["metric"]
    scores = [selection_value(score, metric) for score in barrier["score"]]
    layout = layout_of(
        300,
        xaxis={"title": {"text": "fraction of the way from best single run to served soup"}},
        yaxis={"title": {"text": f"{format.METRIC_NAMES[metric]} on val, {format.unit(metric)}"}},
        showlegend=False,
    )
    ends = [SINGLE, *[SOFT] * (len(scores) - 2), SOUP]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": barrier["fraction"],
        "y": scores,
        "line": {"width": 2, "color": SOFT},
        "marker": {"opacity": 1, "color": ends, "size": [13, *[7] * (len(scores) - 2), 13]},
        "hovertemplate": "%{x:.2f} of the way: %{y:.2f}<extra></extra>",
    }
    return Figure(BARRIER, ABOUT_BARRIER + _height_text(barrier["height"], metric), [line], layout)


def _height_text(height: float | None, metric: str) -> str:
    if height is None:
        return ""
    if height <= 0:
        return " Here no point is worse than the worse end: there is no barrier."
    by = format.with_sign(height, metric).lstrip("+")
    return f" Here the line dips {by} {format.difference_unit(metric)} below the worse end."
