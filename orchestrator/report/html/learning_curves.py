"""Learning curves: every run's selection score, and the anytime soup as a thick line."""

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.report import format
from orchestrator.report.format import Json
from orchestrator.report.html.plot_style import (
    INK,
    RUNS,
    SOUP,
    Figure,
    FigureOrReason,
    FigureView,
    MissingFigure,
    layout_of,
    scaled,
    selection_value,
)
from orchestrator.report.terminal.status import of_cohort
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import MergeState, RunState, State
from workers.types import Evaluated, RunSpec, Score


@dataclass(frozen=True)
class _SideCurve:
    """Another score at each point of a learning curve."""

    name: str
    dash: str
    caption: str


_SIDE_CURVES = {
    "ema": _SideCurve("average", "dash", "Dashed: the EMA of the run's weights."),
    "held_out": _SideCurve(
        "held out", "dot", "Dotted: the run on the images that its fold holds out."
    ),
}
"""Side curves by field of Evaluated."""


RUN_CAPTION = (
    "Each thin line is a run, each point the end of an epoch or the start of a sync round."
)
SOUP_CAPTION = (
    "The thick line is the soup that could have been served at that time: an observe round over "
    "the newest checkpoints."
)


def learning_curves(moment: Moment) -> FigureOrReason:
    """Selection scores of runs, EMAs and anytime soups by time or epoch, and held-out scores."""
    metric = moment.config.soup.metric
    curves = [
        (run, moment.state.run(run.id))
        for run in moment.expanded.runs
        if moment.state.run(run.id).curve
    ]
    if not curves:
        return MissingFigure("learning-curves", "no run has finished an epoch")
    began = moment.state.began_at or 0.0
    lines = [
        line
        for i, (run, run_state) in enumerate(curves)
        for line in _run_lines(run, run_state, RUNS[i % len(RUNS)], metric, began)
    ]
    side_captions = [
        side.caption
        for side in _SIDE_CURVES.values()
        if any(side.name in line["name"] for line in lines)
    ]
    so_far = list(_soups_so_far(moment, metric, began))
    lines += so_far
    finals = _finals(moment, metric, began, max(line["by_epoch"][-1] for line in lines))
    lines += finals
    data = [_trace(line) for line in lines]
    y_title = f"{format.METRIC_NAMES[metric]} on val, {format.unit(metric)}"
    layout = layout_of(
        460,
        xaxis={"title": {"text": "minutes since the start"}, "rangemode": "tozero"},
        yaxis={"title": {"text": y_title}},
        hovermode="closest",
    )
    caption = " ".join([RUN_CAPTION, *([SOUP_CAPTION] if so_far else []), *side_captions])
    return Figure("learning-curves", caption, data, layout, _by_time_or_epoch(lines))


def _run_lines(
    run: RunSpec, run_state: RunState, color: str, metric: str, began: float
) -> Iterator[Json]:
    """The line of the run, and one per side curve."""
    points = [run_state.curve[step] for step in sorted(run_state.curve)]
    label = run.id if run_state.failed is None else f"{run.id} (failed)"
    dash = "solid" if run_state.failed is None else "longdashdot"
    scored = [(point, point.score) for point in points]
    yield _line(run, label, scored, {"width": 1.5, "color": color, "dash": dash}, metric, began)
    for key, side in _SIDE_CURVES.items():
        scored = [(point, score) for point in points if (score := getattr(point, key)) is not None]
        if scored:
            style = {"width": 1, "color": color, "dash": side.dash}
            yield _line(run, f"{label} {side.name}", scored, style, metric, began)


def _line(
    run: RunSpec,
    name: str,
    scored: list[tuple[Evaluated, Score]],
    style: Json,
    metric: str,
    began: float,
) -> Json:
    return {
        "name": name,
        "by_time": [(point.driver_time - began) / 60 for point, _ in scored],
        "by_epoch": [point.epoch for point, _ in scored],
        "y": [scaled(getattr(score, metric), metric) for _, score in scored],
        "text": [_about(run, point) for point, _ in scored],
        "mode": "lines+markers",
        "line": style,
        "marker": {"size": 5},
    }


def _about(run: RunSpec, point: Evaluated) -> str:
    loss = format.UNKNOWN if point.loss is None else f"{point.loss:.4f}"
    return f"{format.params(run.params)}<br>epoch {point.epoch}, loss {loss}"


def _soups_so_far(moment: Moment, metric: str, began: float) -> Iterator[Json]:
    rounds = [
        merge for merge in moment.state.merges.values() if merge.opened.observe and merge.soup
    ]
    for cohort in dict.fromkeys(merge.opened.cohort for merge in rounds):
        ours = sorted(
            (merge for merge in rounds if merge.opened.cohort == cohort),
            key=lambda merge: merge.opened.round or 0,
        )
        yield {
            "name": f"soup so far{of_cohort(moment, cohort)}",
            "by_time": [((merge.mixed_at or began) - began) / 60 for merge in ours],
            "by_epoch": [_mean_epoch(moment, merge) for merge in ours],
            "y": [
                selection_value(merge.soup.score if merge.soup else None, metric) for merge in ours
            ],
            "text": [_about_round(merge) for merge in ours],
            "mode": "lines+markers",
            "line": {"width": 4, "color": SOUP},
            "marker": {"size": 7},
        }


def _mean_epoch(moment: Moment, merge: MergeState) -> float:
    """Mean number of epochs that the runs had finished when the round opened."""
    points = [p for run in moment.expanded.runs for p in moment.state.run(run.id).curve.values()]
    opened_at = merge.opened.driver_time
    return sum(point.driver_time <= opened_at for point in points) / len(moment.expanded.runs)


def _about_round(merge: MergeState) -> str:
    names = merge.soup.mix.names if merge.soup is not None else ()
    return f"round {merge.opened.round}: {format.share_of(names, len(merge.opened.ingredients))}"


def _finals(moment: Moment, metric: str, began: float, last_epoch: float) -> list[Json]:
    return [
        {
            "name": f"final {merge.opened.label}" + of_cohort(moment, merge.opened.cohort),
            "by_time": [((merge.mixed_at or began) - began) / 60],
            "by_epoch": [last_epoch],
            "y": [selection_value(merge.soup.score, metric)],
            "text": [format.share_of(merge.soup.mix.names, len(merge.opened.ingredients))],
            "mode": "markers",
            "marker": {"size": 13, "symbol": symbol, "color": SOUP, "line": {"color": INK}},
        }
        for merge, symbol in zip(_final_merges(moment.state), _symbols(), strict=False)
        if merge.soup is not None
    ]


def _final_merges(state: State) -> list[MergeState]:
    return [merge for merge in state.merges.values() if merge.opened.is_final and merge.soup]


def _symbols() -> list[str]:
    return ["star", "diamond", "square", "triangle-up", "cross", "hexagram", "pentagon"] * 8


def _trace(line: Json) -> Json:
    trace = {key: value for key, value in line.items() if not key.startswith("by_")}
    template = "%{y:.2f}  <b>%{fullData.name}</b><br>%{text}<extra></extra>"
    return {**trace, "type": "scatter", "x": line["by_time"], "hovertemplate": template}


def _by_time_or_epoch(lines: list[Json]) -> tuple[FigureView, ...]:
    """Views that exchange the x axis."""
    titles = {"by_time": "minutes since the start", "by_epoch": "epochs (soups: of the mean run)"}
    return tuple(
        FigureView(
            key.replace("_", " "),
            [{"x": line[key]} for line in lines],
            {"xaxis": {"title": {"text": title}}},
        )
        for key, title in titles.items()
    )
