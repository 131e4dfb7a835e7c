"""Looks: the colour and sign of each kind of model, and models as points of a plane."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.figures import ENSEMBLE, INGREDIENT, PAPER, SINGLE, SOUP
from orchestrator.report.labels import Spot, placed
from orchestrator.report.tables import Row
from orchestrator.report.words import Json


@dataclass(frozen=True)
class Look:
    color: str
    symbol: str
    size: int


LOOKS = {
    "ingredients": Look(INGREDIENT, "circle", 9),
    "best single": Look(SINGLE, "circle", 12),
    "soups": Look(SOUP, "diamond", 10),
    "served soup": Look(SOUP, "star", 16),
    "ensembles": Look(ENSEMBLE, "square", 10),
}
"""By role; drawn in this order."""


def role(row: Row) -> str:
    if row.kind == "run":
        return "best single" if row.is_best_single else "ingredients"
    if row.kind == "soup":
        return "served soup" if row.is_served else "soups"
    return "ensembles"


@dataclass(frozen=True)
class Point:
    """A model somewhere in a plane."""

    row: Row
    x: float
    y: float
    hover: str
    """HTML, below the model's name."""


def traces(
    points: list[Point],
    width: float,
    height: float,
    same_scale: bool = False,
    around: Sequence[tuple[float, float]] = (),
) -> list[Json]:
    """One trace per role. Labels of all but the ingredients stand where there is room for them, in
    a plot of about `width` by `height` pixels that also shows what lies `around`; without room,
    hovering tells."""
    important = sorted(points, key=lambda each: -LOOKS[role(each.row)].size)
    spots = [Spot(each.x, each.y, _label(each.row)) for each in important]
    spots += [Spot(x, y, "") for x, y in around]
    ways = placed(spots, width, height, same_scale)
    where = dict(zip(map(id, important), ways, strict=False))
    return [
        _trace(name, look, ours, [where[id(each)] for each in ours])
        for name, look in LOOKS.items()
        if (ours := [each for each in points if role(each.row) == name])
    ]


def _label(row: Row) -> str:
    return "" if role(row) == "ingredients" else row.name


def _trace(name: str, look: Look, points: list[Point], where: list[str | None]) -> Json:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [each.x for each in points],
        "y": [each.y for each in points],
        "text": [
            _label(each.row) if at is not None else ""
            for each, at in zip(points, where, strict=True)
        ],
        "textposition": [at or "top center" for at in where],
        "textfont": {"size": 11, "color": look.color},
        "customdata": [f"<b>{title(each.row)}</b><br>{each.hover}" for each in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": look.color,
            "symbol": look.symbol,
            "size": look.size,
            "line": {"width": 1, "color": PAPER},
        },
        "cliponaxis": False,
    }


def title(row: Row) -> str:
    return f"{row.kind} {row.name}"
