"""report.html: one file that needs no network, for a reader who was not there."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from orchestrator.program import Program
from orchestrator.report import verdict, words
from orchestrator.report.curves import learning_curves
from orchestrator.report.figures import Figure
from orchestrator.report.intervals import differences
from orchestrator.report.members import members
from orchestrator.report.results import SCORES
from orchestrator.report.tables import Row, rows
from orchestrator.report.timeline import timeline
from orchestrator.report.words import Json
from orchestrator.state import State
from workers.storage import SERVED


def report_html(known: Json, program: Program, state: State) -> str:
    """The page. `known` are the results; the figures are drawn from the state behind them."""
    models = list(rows(known))
    figures = {
        figure.id: figure
        for figure in (
            differences(known, models),
            learning_curves(program, state),
            timeline(state),
        )
        if figure is not None
    }
    sections = [
        section("Every model on every split", _models(known, models, figures.get("differences"))),
        section("Learning curves", _figure(figures.get("learning-curves"))),
        section("Who is in the soup, and why", "".join(members(known))),
        section("What went wrong", _failures(known)),
        section("The fleet", _fleet(known, figures.get("timeline"))),
        section("The data", _data(known)),
        section("Load the soup", _loading(known)),
    ]
    page = Template(resources.files("orchestrator.report").joinpath("page.html").read_text())
    return page.substitute(
        title=escape(f"{known['name']}: soup of {words.counted(len(words.trained(known)), 'run')}"),
        name=escape(known["name"]),
        facts=_facts(known, state),
        verdict=_verdict(known),
        sections="\n".join(each for each in sections if each),
        figures=_as_script([_drawable(figure) for figure in figures.values()]),
        plotly=_plotly(),
    )


@cache
def _plotly() -> str:
    """plotly.js as it may stand in a page: with neither a title nor an end of script of its own."""
    source: str = get_plotlyjs().replace("<title>plotly-logomark</title>", "")
    return source.replace("</script", "<\\/script")


def _drawable(figure: Figure) -> Json:
    return {"id": figure.id, "data": figure.data, "layout": figure.layout}


def _as_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def table(head: Iterable[str], lines: Iterable[str], kind: str = "") -> str:
    """A table of finished cells: `head` is text, `lines` are rows of HTML."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _facts(known: Json, state: State) -> str:
    models = ", ".join(dict.fromkeys(cohort["model"] for cohort in known["cohorts"]))
    began = state.began_at
    when = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC") if began else ""
    runs = words.counted(len(words.trained(known)), "run")
    parts = [models, runs, f"{words.duration(known['wall_s'])}", when]
    return " · ".join(escape(part) for part in parts if part)


def _verdict(known: Json) -> str:
    said = verdict.verdict(known)
    lines = [f'<p class="said">{escape(said.sentence)}</p>']
    lines += [f"<p>{escape(sentence)}</p>" for sentence in verdict.about_ensembles(known)]
    cautions = "".join(f"<li>{escape(each)}</li>" for each in verdict.cautions(known))
    cautions = f'<ul class="cautions">{cautions}</ul>' if cautions else ""
    return f'<div class="verdict {said.tone}">{"".join(lines)}</div>{cautions}'


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    height = figure.layout["height"]
    return (
        f'<figure><div id="{figure.id}" class="plot" style="height:{height}px"></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _models(known: Json, models: list[Row], figure: Figure | None) -> str:
    metric, splits = known["metric"], words.splits_of(known)
    columns = [_split_title(known, split) for split in splits]
    measure = words.METRICS[metric]
    lines = [_model_line(row, splits, metric) for row in models]
    note = (
        f"<p>{measure[0].upper()}{measure[1:]}, {words.unit(metric)}; below it the difference to "
        "the best single run with its 95 % interval. <b>val</b> chose checkpoints and soups, the "
        "other splits chose nothing.</p>"
    )
    return (
        note
        + table(["model", "what", "status", *columns], lines, "models")
        + _figure(figure)
        + _all_metrics(models, splits)
    )


def _split_title(known: Json, split: str) -> str:
    return f"{split} ({known['splits'][split]['count']})"


def _model_line(row: Row, splits: list[str], metric: str) -> str:
    marks = ["served"] if row.is_served else []
    marks += ["best single"] if row.is_best_single else []
    chips = "".join(f' <span class="chip">{mark}</span>' for mark in marks)
    cells = "".join(_score_cell(row, split, metric) for split in splits)
    kind = f"{row.kind} {row.status}{' served' if row.is_served else ''}"
    status = escape(row.status) if row.kind == "run" else ""
    return (
        f'<tr class="{kind}"><td>{escape(_name(row))}{chips}</td><td class="what">'
        f"{escape(row.about)}</td><td>{status}</td>{cells}</tr>"
    )


def _name(row: Row) -> str:
    return row.name if row.kind == "run" else f"{row.kind}: {row.name}"


def _score_cell(row: Row, split: str, metric: str) -> str:
    value = words.shown(words.score_of(row.scores, split, metric), metric)
    delta = row.deltas.get(split)
    below = ""
    if delta:
        tone = verdict.judged(delta)
        below = f'<br><span class="delta {tone}">{escape(words.interval(delta))}</span>'
    return f'<td class="number">{value}{below}</td>'


def _all_metrics(models: list[Row], splits: list[str]) -> str:
    head = ["model", *(f"{split} {words.METRICS[name]}" for split in splits for name in SCORES)]
    lines = [
        f"<tr><td>{escape(_name(row))}</td>"
        + "".join(
            f'<td class="number">{words.shown(words.score_of(row.scores, split, name), name)}</td>'
            for split in splits
            for name in SCORES
        )
        + "</tr>"
        for row in models
    ]
    return f"<details><summary>All metrics</summary>{table(head, lines)}</details>"


def _failures(known: Json) -> str:
    if not known["failures"]:
        return ""
    lines = [
        f'<tr class="{"failed" if each["gave_up"] else ""}"><td>{escape(each["order"])}</td>'
        f'<td class="number">{each["times"]}</td><td>{escape(each["message"] or "")}</td>'
        f"<td>{escape(each['gave_up'] or 'mended by another attempt')}</td></tr>"
        for each in known["failures"]
    ]
    return table(["order", "times", "last message", "outcome"], lines, "count-second")


def _fleet(known: Json, figure: Figure | None) -> str:
    used = known["fleet_efficiency"]
    sentence = (
        f"{words.duration(known['wall_s'])} in all. Slots were at work "
        f"{words.percent(used['value'])} of the time in which there was work for them, and "
        f"{words.percent(used['whole_wall'])} of the whole time."
    )
    return f"<p>{escape(sentence)}</p>{_figure(figure)}"


def _data(known: Json) -> str:
    lines = [
        f'<tr><td>{escape(name)}</td><td class="number">{split["count"]}</td>'
        f"<td><code>{escape(split['fingerprint'])}</code></td></tr>"
        for name, split in known["splits"].items()
    ]
    return "".join(
        [
            "<p>A fingerprint is the sha256 over key, label and content of every image of a split. "
            "Equal fingerprints: equal data.</p>",
            table(["split", "images", "fingerprint"], lines, "count-second"),
            *_folds(known["folds"]),
            f"<p>{len(known['classes'])} classes: {escape(', '.join(known['classes']))}.</p>",
            *_corrupt(known["corrupt"]),
        ]
    )


def _folds(counts: list[int]) -> Iterator[str]:
    if counts:
        yield (
            f"<p>{len(counts)} folds of train hold out {', '.join(map(str, counts))} images. What "
            "a run holds out ends its training and fits stacked classifiers, nothing else.</p>"
        )


def _corrupt(keys: list[str]) -> Iterator[str]:
    if keys:
        listed = ", ".join(keys[:20]) + (" and more" if len(keys) > 20 else "")
        yield f"<p>{len(keys)} do not decode and belong to no split: {escape(listed)}.</p>"


def _loading(known: Json) -> str:
    if known["served"] is None:
        return ""
    is_remote = "://" in known["uri"]
    folder = SERVED if is_remote else f"{known['uri']}/{SERVED}"
    first = f"<p>Copy <code>{escape(SERVED)}/</code> from {escape(known['uri'])}, then:</p>"
    return (first if is_remote else "") + f"<pre>{escape(SNIPPET.format(folder=folder))}</pre>"


SNIPPET = """\
import timm
from PIL import Image

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("image.png").convert("RGB")).unsqueeze(0))
print(model.pretrained_cfg["label_names"][logits.argmax()])"""
