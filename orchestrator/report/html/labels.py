"""Labels: where in a scatter plot the name of each point can stand without covering another."""

from dataclasses import dataclass

CHARACTER, LINE, MARKER = 6.4, 14.0, 12.0
"""Width and height of a character, and the side of a point, in pixels."""
WAYS = {
    "middle right": (1, 0),
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle left": (-1, 0),
    "top right": (1, 1),
    "bottom right": (1, -1),
    "top left": (-1, 1),
    "bottom left": (-1, -1),
}
"""plotly's names -> which way from the point; the first is the best."""

Box = tuple[float, float, float, float]
"""left, bottom, right, top, in pixels"""


@dataclass(frozen=True)
class Spot:
    x: float
    y: float
    label: str


def placed(spots: list[Spot], width: float, height: float, same_scale: bool) -> list[str | None]:
    """A way for each label, in order of importance; None for what has no room, or no label."""
    centres = _pixels(spots, width, height, same_scale)
    taken = [_around(x, y, MARKER, MARKER) for x, y in centres]
    found: list[str | None] = []
    for spot, (x, y) in zip(spots, centres, strict=True):
        boxes = {way: _label_box(x, y, len(spot.label), *to) for way, to in WAYS.items()}
        free = [way for way, box in boxes.items() if not any(_touch(box, b) for b in taken)]
        way = free[0] if free and spot.label else None
        found.append(way)
        if way is not None:
            taken.append(boxes[way])
    return found


def _pixels(
    spots: list[Spot], width: float, height: float, same_scale: bool
) -> list[tuple[float, float]]:
    """Where the points will lie, when the axes end a little beyond them."""
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    across, up = (width / (_span(xs) * 1.12), height / (_span(ys) * 1.12))
    if same_scale:
        across = up = min(across, up)
    return [(across * spot.x, up * spot.y) for spot in spots]


def _span(values: list[float]) -> float:
    return (max(values) - min(values)) or 1.0


def _around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _label_box(x: float, y: float, characters: int, right: int, up: int) -> Box:
    width = CHARACTER * characters
    apart = (MARKER + width) / 2 + 1
    return _around(x + right * apart, y + up * (MARKER + LINE) / 2, width, LINE)


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
