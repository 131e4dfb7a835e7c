"""Errors: what they are made of, and which classes are taken for which."""

from orchestrator.report.format import Json
from orchestrator.report.html.calibration import detailed, reported
from orchestrator.report.html.plot_style import (
    ENSEMBLE,
    INGREDIENT,
    INK,
    SEQUENTIAL,
    SINGLE,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    panel_axes,
    panels,
)

BIAS, CONFUSION = "bias-variance", "confusion"
_MAX_LABELLED_CLASSES = 25
"""Classes of a confusion matrix whose cells have room for a number."""
OF_LOSS = (
    ("bias", "bias", SINGLE, 1),
    ("unbiased", "variance that hurts", INGREDIENT, 1),
    ("flipped", "variance that helps", ENSEMBLE, -1),
)
"""(key, name, colour, sign): what the 0-1 loss of the mean run is made of."""
OF_NLL = (("nll_bias", "bias", SINGLE, 1), ("nll_variance", "variance", INGREDIENT, 1))
ABOUT_BIAS = (
    "The error of the average run in parts. Bias is what all runs get wrong together: no averaging "
    "mends it. Variance is where they disagree: what soups and ensembles can win. Below zero: "
    "images that the majority gets wrong and some run gets right. The line marks the sum, the mean "
    "run's loss."
)
ABOUT_CONFUSION = (
    "Rows: the true class; columns: what the model says; numbers are images, and the shade is the "
    "share of the row. Off the diagonal, a dark cell is a pair of classes that are mistaken."
)


def bias_variance_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Stacked bars per split, of 0-1 loss and of log loss; a view per cohort."""
    if analysis is None:
        return MissingFigure(BIAS, "there is no analysis.json yet")
    names = {cohort["id"]: cohort["name"] for cohort in results["cohorts"]}
    found: dict[str, dict[str, Json]] = {}
    for split, each in analysis["splits"].items():
        for cohort, parts in each["bias_variance"].items():
            found.setdefault(cohort, {})[split] = parts
    if not found:
        return MissingFigure(BIAS, "it takes a cohort of at least two runs")
    views = {cohort: _bars(by_split) for cohort, by_split in found.items()}
    layout = panels(["0-1 loss, %", "log loss, nats"], 380, yaxis={"rangemode": "tozero"})
    layout |= {"barmode": "relative", "bargap": 0.45}
    layout["legend"] = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"}
    choices = tuple(
        FigureView(f"{names.get(cohort, cohort)}, {_runs(found[cohort])} runs", view)
        for cohort, view in views.items()
    )
    first = next(iter(views.values()))
    return Figure(BIAS, ABOUT_BIAS, first, layout, choices if len(choices) > 1 else ())


def _runs(by_split: dict[str, Json]) -> int:
    return max(int(each["num_models"]) for each in by_split.values())


def _bars(by_split: dict[str, Json]) -> list[Json]:
    known = {split: each for split, each in by_split.items() if each["nll"] is not None}
    bars = [_bar(by_split, *part, scale=100, panel=0) for part in OF_LOSS]
    bars += [_bar(known, *part, scale=1, panel=1) for part in OF_NLL]
    return [*bars, _sum(by_split, "loss", 100, 0), _sum(known, "nll", 1, 1)]


def _bar(
    by_split: dict[str, Json], key: str, name: str, color: str, sign: int, scale: int, panel: int
) -> Json:
    return {
        "type": "bar",
        "name": name,
        "legendgroup": color,
        "showlegend": panel == 0,
        "x": list(by_split),
        "y": [sign * scale * each[key] for each in by_split.values()],
        "marker": {"color": color},
        "hovertemplate": f"{name}: %{{y:.3f}}<extra></extra>",
        **panel_axes(panel),
    }


def _sum(by_split: dict[str, Json], key: str, scale: int, panel: int) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "loss of the mean run",
        "legendgroup": "sum",
        "showlegend": panel == 0,
        "x": list(by_split),
        "y": [scale * each[key] for each in by_split.values()],
        "marker": {
            "symbol": "line-ew",
            "size": 46,
            "color": INK,
            "line": {"width": 2.5, "color": INK},
        },
        "hovertemplate": "loss of the mean run: %{y:.3f}<extra></extra>",
        **panel_axes(panel),
    }


def confusion_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Best single and served soup side by side; a view per split."""
    if analysis is None:
        return MissingFigure(CONFUSION, "there is no analysis.json yet")
    models, splits = detailed(analysis), reported(analysis)
    if not models or not splits:
        return MissingFigure(CONFUSION, "no model is analysed in detail")
    classes = analysis["classes"]
    axis = {"type": "category", "showgrid": False}
    layout = panels(
        [title for _, title, _ in models],
        min(900, 170 + 24 * len(classes)),
        gap=0.14,
        xaxis={**axis, "tickangle": -45},
        yaxis={**axis, "autorange": "reversed"},
    )
    views = {split: _matrices(analysis, models, split) for split in splits}
    choices = tuple(FigureView(split, view) for split, view in views.items())
    first = views[splits[0]]
    return Figure(CONFUSION, ABOUT_CONFUSION, first, layout, choices if len(choices) > 1 else ())


def _matrices(analysis: Json, models: list[tuple[str, str, str]], split: str) -> list[Json]:
    details = analysis["splits"][split]["details"]
    return [
        _matrix(details[id]["confusion"], analysis["classes"], i)
        for i, (id, _, _) in enumerate(models)
        if id in details
    ]


def _matrix(counts: list[list[int]], classes: list[str], panel: int) -> Json:
    is_written = len(classes) <= _MAX_LABELLED_CLASSES
    return {
        "type": "heatmap",
        "x": classes,
        "y": classes,
        "z": [[count / (sum(row) or 1) for count in row] for row in counts],
        "text": [[str(count or "") for count in row] for row in counts],
        **({"texttemplate": "%{text}"} if is_written else {}),
        "zmin": 0,
        "zmax": 1,
        "colorscale": SEQUENTIAL,
        "showscale": False,
        "xgap": 1 if is_written else 0,
        "ygap": 1 if is_written else 0,
        "hovertemplate": "%{y} taken for %{x}: %{text} (%{z:.1%})<extra></extra>",
        **panel_axes(panel),
    }
