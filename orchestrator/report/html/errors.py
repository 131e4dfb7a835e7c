"""Errors: bias and variance of the runs, and confusion matrices."""

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
"""A confusion matrix of more classes has no room for numbers."""
OF_LOSS = (
    ("bias", "bias", SINGLE, 1),
    ("unbiased", "variance that hurts", INGREDIENT, 1),
    ("flipped", "variance that helps", ENSEMBLE, -1),
)
"""(key, name, colour, sign) of the parts of the mean run's 0-1 loss."""
OF_NLL = (("nll_bias", "bias", SINGLE, 1), ("nll_variance", "variance", INGREDIENT, 1))
ABOUT_BIAS = (
    "The error of the mean run in parts. Bias is the error that all runs have in common, which no "
    "averaging removes. Variance is the error from disagreement, which soups and ensembles can "
    "remove. Below zero: images that the majority gets wrong and some run gets right. The line "
    "marks the sum, the loss of the mean run."
)
ABOUT_CONFUSION = (
    "Rows: the true class; columns: the predicted class. Numbers count images, and the shade is "
    "the share of the row. A dark cell off the diagonal is a pair of classes that the model "
    "confuses."
)


def bias_variance_figure(results: Json, analysis: Json | None) -> FigureOrReason:
    """Stacked bars per split, of 0-1 loss and of log loss; a view per cohort."""
    if analysis is None:
        return MissingFigure(BIAS, "there is no analysis.json yet")
    names = {cohort["id"]: cohort["name"] for cohort in results["cohorts"]}
    parts: dict[str, dict[str, Json]] = {}
    for split, content in analysis["splits"].items():
        for cohort, of_cohort in content["bias_variance"].items():
            parts.setdefault(cohort, {})[split] = of_cohort
    if not parts:
        return MissingFigure(BIAS, "it takes a cohort of at least two runs")
    views = {cohort: _bars(by_split) for cohort, by_split in parts.items()}
    layout = panels(["0-1 loss, %", "log loss, nats"], 380, yaxis={"rangemode": "tozero"})
    layout |= {"barmode": "relative", "bargap": 0.45}
    layout["legend"] = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"}
    choices = tuple(
        FigureView(f"{names.get(cohort, cohort)}, {_num_runs(parts[cohort])} runs", view)
        for cohort, view in views.items()
    )
    first = next(iter(views.values()))
    return Figure(BIAS, ABOUT_BIAS, first, layout, choices if len(choices) > 1 else ())


def _num_runs(by_split: dict[str, Json]) -> int:
    return max(int(parts["num_models"]) for parts in by_split.values())


def _bars(by_split: dict[str, Json]) -> list[Json]:
    finite = {split: parts for split, parts in by_split.items() if parts["nll"] is not None}
    bars = [_bar(by_split, *part, scale=100, panel=0) for part in OF_LOSS]
    bars += [_bar(finite, *part, scale=1, panel=1) for part in OF_NLL]
    return [*bars, _sum(by_split, "loss", 100, 0), _sum(finite, "nll", 1, 1)]


def _bar(
    by_split: dict[str, Json], key: str, name: str, color: str, sign: int, scale: int, panel: int
) -> Json:
    return {
        "type": "bar",
        "name": name,
        "legendgroup": color,
        "showlegend": panel == 0,
        "x": list(by_split),
        "y": [sign * scale * parts[key] for parts in by_split.values()],
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
        "y": [scale * parts[key] for parts in by_split.values()],
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
    """Best single run and served soup side by side; a view per split."""
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
    has_numbers = len(classes) <= _MAX_LABELLED_CLASSES
    return {
        "type": "heatmap",
        "x": classes,
        "y": classes,
        "z": [[count / (sum(row) or 1) for count in row] for row in counts],
        "text": [[str(count or "") for count in row] for row in counts],
        **({"texttemplate": "%{text}"} if has_numbers else {}),
        "zmin": 0,
        "zmax": 1,
        "colorscale": SEQUENTIAL,
        "showscale": False,
        "xgap": int(has_numbers),
        "ygap": int(has_numbers),
        "hovertemplate": "%{y} taken for %{x}: %{text} (%{z:.1%})<extra></extra>",
        **panel_axes(panel),
    }
