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
class _Beside:
    """Another score at each point of a learning curve."""

    name: str
    dash: str
    caption: str


BESIDE = {
    "ema": _Beside("average", "dash", "Dashed: the moving average of the run's weights."),
    "held_out": _Beside(
        "held out", "dot", "Dotted: the run on the images that its fold holds out."
    ),
}
"""By field of Evaluated."""


RUN_LINE = "Each thin line is a run, each point the end of an epoch, or of a way to a sync round."
SOUP_LINE = (
    "The thick line is the soup that could have been served at that moment: an observe round over "
    "the newest checkpoints."
)


def learning_curves(moment: Moment) -> FigureOrReason:
    """Selection score of every run by time or epoch, beside it that of its moving average and the
    one on what its fold holds out, and the anytime soup as a thick line."""
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
        for i, (run, known) in enumerate(curves)
        for line in _of_run(run, known, RUNS[i % len(RUNS)], metric, began)
    ]
    shown = [
        beside for beside in BESIDE.values() if any(beside.name in each["name"] for each in lines)
    ]
    so_far = list(_soups_so_far(moment, metric, began))
    lines += so_far
    finals = _finals(moment, metric, began, max(line["by_epoch"][-1] for line in lines))
    lines += finals
    data = [_drawn(line) for line in lines]
    y_title = f"{format.METRIC_NAMES[metric]} on val, {format.unit(metric)}"
    layout = layout_of(
        460,
        xaxis={"title": {"text": "minutes since the start"}, "rangemode": "tozero"},
        yaxis={"title": {"text": y_title}},
        hovermode="closest",
    )
    said = [RUN_LINE, *([SOUP_LINE] if so_far else []), *(beside.caption for beside in shown)]
    caption = " ".join(said)
    return Figure("learning-curves", caption, data, layout, _by_time_or_epoch(lines))


def _of_run(run: RunSpec, known: RunState, color: str, metric: str, began: float) -> Iterator[Json]:
    """Its own line, and one for each score beside it."""
    points = [known.curve[step] for step in sorted(known.curve)]
    label = run.id if known.failed is None else f"{run.id} (failed)"
    dash = "solid" if known.failed is None else "longdashdot"
    scored = [(point, point.score) for point in points]
    yield _line(run, label, scored, {"width": 1.5, "color": color, "dash": dash}, metric, began)
    for key, beside in BESIDE.items():
        found = [(p, score) for p in points if (score := getattr(p, key)) is not None]
        if found:
            style = {"width": 1, "color": color, "dash": beside.dash}
            yield _line(run, f"{label} {beside.name}", found, style, metric, began)


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
        "by_time": [(point.time - began) / 60 for point, _ in scored],
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
    rounds = [each for each in moment.state.merges.values() if each.opened.observe and each.soup]
    for cohort in dict.fromkeys(each.opened.cohort for each in rounds):
        ours = sorted(
            (each for each in rounds if each.opened.cohort == cohort),
            key=lambda each: each.opened.round or 0,
        )
        yield {
            "name": f"soup so far{of_cohort(moment, cohort)}",
            "by_time": [((each.mixed_at or began) - began) / 60 for each in ours],
            "by_epoch": [_mean_epoch(moment, each) for each in ours],
            "y": [selection_value(each.soup.score if each.soup else None, metric) for each in ours],
            "text": [_about_round(each) for each in ours],
            "mode": "lines+markers",
            "line": {"width": 4, "color": SOUP},
            "marker": {"size": 7},
        }


def _mean_epoch(moment: Moment, merge: MergeState) -> float:
    """Epochs that the average run had behind it when the round opened."""
    points = [p for run in moment.expanded.runs for p in moment.state.run(run.id).curve.values()]
    return sum(point.time <= merge.opened.time for point in points) / len(moment.expanded.runs)


def _about_round(merge: MergeState) -> str:
    names = merge.soup.mix.names if merge.soup is not None else ()
    return f"round {merge.opened.round}: {format.share_of(names, len(merge.opened.ingredients))}"


def _finals(moment: Moment, metric: str, began: float, last_epoch: float) -> list[Json]:
    return [
        {
            "name": f"final {each.opened.label}" + of_cohort(moment, each.opened.cohort),
            "by_time": [((each.mixed_at or began) - began) / 60],
            "by_epoch": [last_epoch],
            "y": [selection_value(each.soup.score, metric)],
            "text": [format.share_of(each.soup.mix.names, len(each.opened.ingredients))],
            "mode": "markers",
            "marker": {"size": 13, "symbol": symbol, "color": SOUP, "line": {"color": INK}},
        }
        for each, symbol in zip(_final_merges(moment.state), _symbols(), strict=False)
        if each.soup is not None
    ]


def _final_merges(state: State) -> list[MergeState]:
    return [each for each in state.merges.values() if each.opened.is_final and each.soup]


def _symbols() -> list[str]:
    return ["star", "diamond", "square", "triangle-up", "cross", "hexagram", "pentagon"] * 8


def _drawn(line: Json) -> Json:
    kept = {key: value for key, value in line.items() if not key.startswith("by_")}
    template = "%{y:.2f}  <b>%{fullData.name}</b><br>%{text}<extra></extra>"
    return {**kept, "type": "scatter", "x": line["by_time"], "hovertemplate": template}


def _by_time_or_epoch(lines: list[Json]) -> tuple[FigureView, ...]:
    """Exchange the x axis."""
    titles = {"by_time": "minutes since the start", "by_epoch": "epochs (soups: of the mean run)"}
    return tuple(
        FigureView(
            key.replace("_", " "),
            [{"x": line[key]} for line in lines],
            {"xaxis": {"title": {"text": title}}},
        )
        for key, title in titles.items()
    )
