"""Coefficients: the share of each ingredient in each soup and in each of its components."""

from collections import Counter

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    DIVERGING,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    layout_of,
)

_ID = "coefficients"
_MAX_LABELLED_COLUMNS = 20
"""A heatmap with more columns has no room for numbers."""
_CAPTION = (
    "The share of each ingredient in a soup: a row per ingredient, and each column sums to 1. Pale "
    "is zero, blue is negative, and the stronger the orange the larger. Soups whose components are "
    "mixed differently have a view of their own, with a column per component in the order of "
    "execution."
)


def coefficients_figure(results: Json) -> FigureOrReason:
    """Ingredients x soups; ingredients x components for each soup that has components."""
    if not results["soups"]:
        return MissingFigure(_ID, "no soup has been made")
    rows = _ingredients(results)
    plain = [soup for soup in results["soups"] if not soup["mix"].get("components")]
    views = [("all recipes", _overview(results, plain, rows))] if plain else []
    views += [
        (format.soup_label(results, soup), _by_component(soup, rows))
        for soup in results["soups"]
        if soup["mix"].get("components")
    ]
    names = _names(results, rows)
    data = [_heatmap(names, *views[0][1])]
    longest = max(len(column) for _, (columns, _) in views for column in columns)
    layout = layout_of(
        70 + 4 * longest + 27 * len(rows),  # column names are slanted
        xaxis={"type": "category", "showgrid": False, "tickangle": -40},
        yaxis={"type": "category", "showgrid": False, "autorange": "reversed"},
    )
    choices = tuple(FigureView(label, [_heatmap(names, *view)]) for label, view in views)
    return Figure(_ID, _CAPTION, data, layout, choices if len(choices) > 1 else ())


_View = tuple[list[str], list[list[float | None]]]
"""Names of columns, and coefficients row by row."""


def _ingredients(results: Json) -> list[str]:
    """Ids of the ingredients of all soups, by run and step; bases are last."""
    used = {member for soup in results["soups"] for member, _ in soup["mix"]["weights"]}
    place = {run["id"]: number for number, run in enumerate(results["runs"])}
    return sorted(used, key=lambda id: (place.get(id.partition("/")[0], len(place)), id))


def _names(results: Json, rows: list[str]) -> list[str]:
    """Names of the rows, all different: plotly draws rows of the same name over each other."""
    names = [format.model_name(results, checkpoint) for checkpoint in rows]
    times = Counter(names)
    return [
        f"{_number(checkpoint)} of {name}" if times[name] > 1 else name
        for name, checkpoint in zip(names, rows, strict=True)
    ]


def _number(checkpoint: str) -> str:
    """`step 570` of a run's checkpoint; the hash of a base."""
    _, _, last = checkpoint.partition("/")
    return last if format.is_base(checkpoint) else f"step {int(last.partition('-')[0])}"


def _overview(results: Json, soups: list[Json], rows: list[str]) -> _View:
    columns = [format.soup_label(results, soup) for soup in soups]
    shares = [_shares(soup["mix"], None) for soup in soups]
    return columns, [[share.get(row) for share in shares] for row in rows]


def _by_component(soup: Json, rows: list[str]) -> _View:
    mix = soup["mix"]
    columns = ["all the rest", *(component["prefix"] for component in mix["components"])]
    shares = [_shares(mix, None), *(_shares(mix, component) for component in mix["components"])]
    return columns, [[share.get(row) for share in shares] for row in rows]


def _shares(mix: Json, component: Json | None) -> dict[str, float]:
    """Coefficients by id, in one component. None: in the rest of the model."""
    ids = [member for member, _ in mix["weights"]]
    own = [weight for _, weight in mix["weights"]] if component is None else component["weights"]
    return {id: weight / mix["divisor"] for id, weight in zip(ids, own, strict=True)}


def _heatmap(rows: list[str], columns: list[str], values: list[list[float | None]]) -> Json:
    return {
        "type": "heatmap",
        "x": columns,
        "y": rows,
        "z": values,
        "text": _texts(columns, values),
        "texttemplate": "%{text}",
        "colorscale": DIVERGING,
        "zmid": 0,
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "%{y}<br>%{x}: %{z:.4f}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 11}},
    }


def _texts(columns: list[str], values: list[list[float | None]]) -> list[list[str]]:
    if len(columns) > _MAX_LABELLED_COLUMNS:
        return [[""] * len(columns)] * len(values)
    return [["" if not value else f"{value:.2f}" for value in row] for row in values]
