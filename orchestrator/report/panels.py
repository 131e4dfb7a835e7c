"""Panels: two or more plots side by side in one figure, each with its title."""

from orchestrator.report.figures import layout_of
from orchestrator.report.words import Json


def panels(titles: list[str], height: int, gap: float = 0.09, **axes: Json) -> Json:
    """A layout with a pair of axes per title: xaxis and yaxis, xaxis2 and yaxis2, ... `axes` may
    hold `xaxis` and `yaxis`, which all panels get."""
    layout = layout_of(height, margin={"t": 34}, **axes)
    width = (1 - gap * (len(titles) - 1)) / len(titles)
    layout["annotations"] = []
    base_x, base_y = layout["xaxis"], layout["yaxis"]
    for i, title in enumerate(titles):
        number = suffix(i)
        domain = [i * (width + gap), i * (width + gap) + width]
        layout[f"xaxis{number}"] = {**base_x, "domain": domain, "anchor": f"y{number}"}
        layout[f"yaxis{number}"] = {**base_y, "anchor": f"x{number}"}
        layout["annotations"].append(above(title, domain))
    return layout


def suffix(index: int) -> str:
    """What plotly calls the axes of that panel."""
    return "" if index == 0 else str(index + 1)


def on(index: int) -> Json:
    """For a trace: which panel it is in."""
    return {"xaxis": f"x{suffix(index)}", "yaxis": f"y{suffix(index)}"}


def above(title: str, domain: list[float]) -> Json:
    """The title of the panel with that part of the width."""
    where = {"x": sum(domain) / 2, "y": 1, "xref": "paper", "yref": "paper"}
    anchor = {"xanchor": "center", "yanchor": "bottom"}
    return {"text": f"<b>{title}</b>", "showarrow": False, **where, **anchor}
