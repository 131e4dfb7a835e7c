"""Coefficients: how much of each ingredient is in each soup, and in each of its components."""

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
"""Columns of a heatmap whose cells are wide enough for a number."""
_CAPTION = (
    "How much of each ingredient is in a soup: a row per ingredient, and each column sums to 1. "
    "Pale is nothing, blue less than nothing, and the stronger the orange the more. Soups whose "
    "components are mixed differently have a view of their own, with a column per component, in "
    "the order the model executes them."
)


def coefficients_figure(results: Json) -> FigureOrReason:
    """Ingredients x soups; and ingredients x components of each soup that has any."""
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
    data = [_drawn(names, *views[0][1])]
    longest = max(len(column) for _, (columns, _) in views for column in columns)
    layout = layout_of(
        70 + 4 * longest + 27 * len(rows),  # the names of columns stand aslant
        xaxis={"type": "category", "showgrid": False, "tickangle": -40},
        yaxis={"type": "category", "showgrid": False, "autorange": "reversed"},
    )
    choices = tuple(FigureView(label, [_drawn(names, *view)]) for label, view in views)
    return Figure(_ID, _CAPTION, data, layout, choices if len(choices) > 1 else ())


_View = tuple[list[str], list[list[float | None]]]
"""Names of columns, and rows of coefficients."""


def _ingredients(results: Json) -> list[str]:
    """Ids of what any soup was made from: by run and step, bases last."""
    used = {member for soup in results["soups"] for member, _ in soup["mix"]["weights"]}
    place = {run["id"]: number for number, run in enumerate(results["runs"])}
    return sorted(used, key=lambda each: (place.get(each.partition("/")[0], len(place)), each))


def _names(results: Json, rows: list[str]) -> list[str]:
    """Of the rows, all different: those of one name would be drawn over each other."""
    names = [format.model_name(results, each) for each in rows]
    seen = Counter(names)
    return [
        f"{_number(each)} of {name}" if seen[name] > 1 else name
        for name, each in zip(names, rows, strict=True)
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
    columns = ["all the rest", *(each["prefix"] for each in mix["components"])]
    shares = [_shares(mix, None), *(_shares(mix, each) for each in mix["components"])]
    return columns, [[share.get(row) for share in shares] for row in rows]


def _shares(mix: Json, component: Json | None) -> dict[str, float]:
    """By id; of the whole mix, or of one component."""
    ids = [member for member, _ in mix["weights"]]
    own = [weight for _, weight in mix["weights"]] if component is None else component["weights"]
    return {id: weight / mix["divisor"] for id, weight in zip(ids, own, strict=True)}


def _drawn(rows: list[str], columns: list[str], values: list[list[float | None]]) -> Json:
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
