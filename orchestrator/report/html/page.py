"""report.html: one file that needs no network, for a reader who was not there."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.report import format, verdict
from orchestrator.report.format import Json
from orchestrator.report.html.about import data, failures, fleet, loading
from orchestrator.report.html.calibration import reliability_figure
from orchestrator.report.html.coefficients import coefficients_figure
from orchestrator.report.html.differences import differences_figure
from orchestrator.report.html.errors import bias_variance_figure, confusion_figure
from orchestrator.report.html.learning_curves import learning_curves
from orchestrator.report.html.members import members
from orchestrator.report.html.model_map import model_map_figure
from orchestrator.report.html.models import all_metrics, recipe_table, run_table
from orchestrator.report.html.plot_style import Figure, FigureOrReason
from orchestrator.report.html.robustness import robustness_figures
from orchestrator.report.html.selection_steps import selection_steps_figure
from orchestrator.report.html.sync_rounds import round_parts
from orchestrator.report.html.timeline import timeline
from orchestrator.report.html.weight_space import barrier_figure, cosines_figure
from orchestrator.report.model_rows import rows
from orchestrator.state.state import State


@dataclass(frozen=True)
class PageSection:
    """A part of the page; `parts` are HTML and figures, in order."""

    anchor: str
    title: str
    parts: tuple[str | FigureOrReason, ...]

    @property
    def is_empty(self) -> bool:
        return not any(self.parts)

    @property
    def figures(self) -> list[Figure]:
        return [part for part in self.parts if isinstance(part, Figure)]

    def html(self) -> str:
        body = "\n".join(
            each if isinstance(each, str) else figure_html(each) for each in self.parts
        )
        return f'<section id="{self.anchor}"><h2>{escape(self.title)}</h2>\n{body}</section>'


def report_html(
    known: Json, program: ExpandedExperiment, state: State, analysis: Json | None = None
) -> str:
    """The page. `known` are the results, `analysis` is what analysis.json holds, if there is any;
    curves and the timeline are drawn from the state behind them."""
    sections = [each for each in _sections(known, program, state, analysis) if not each.is_empty]
    figures = [asdict(figure) for each in sections for figure in each.figures]
    runs = format.count_of(len(format.trained(known)), "run")
    return Template(_resource("page.html")).substitute(
        title=escape(f"{known['name']}: soup of {runs}"),
        name=escape(known["name"]),
        facts=_facts(known, state),
        verdict=_verdict(known, analysis),
        contents="".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections),
        sections="\n".join(each.html() for each in sections),
        style=_resource("style.css"),
        figures=_as_script(figures),
        plotly=_plotly(),
        script=_resource("script.js"),
    )


def _sections(
    known: Json, program: ExpandedExperiment, state: State, analysis: Json | None
) -> Iterator[PageSection]:
    models = list(rows(known))
    table = recipe_table(known, analysis, models)
    yield PageSection(
        "recipes", "Recipes", (table, differences_figure(known, models), all_metrics(known, models))
    )
    yield PageSection("shift", "On shifted data", robustness_figures(known, models))
    yield PageSection("alike", "Who predicts alike", (model_map_figure(analysis, models),))
    chosen = (selection_steps_figure(known), coefficients_figure(known), *members(known))
    yield PageSection("choices", "What is in the soups, and why", chosen)
    weights = (cosines_figure(known, analysis), barrier_figure(known, analysis))
    yield PageSection("weights", "In weight space", weights)
    wrong = (
        *(reliability_figure(analysis), bias_variance_figure(known, analysis)),
        confusion_figure(known, analysis),
    )
    yield PageSection("errors", "Errors", wrong)
    yield PageSection("runs", "Runs", (learning_curves(program, state), run_table(known, models)))
    yield PageSection("rounds", "Merged while training", round_parts(known))
    yield PageSection("failures", "What went wrong", (failures(known),))
    yield PageSection("fleet", "The fleet", (fleet(known), timeline(state)))
    yield PageSection("data", "The data", (data(known),))
    yield PageSection("load", "Load the soup", (loading(known),))


def _resource(name: str) -> str:
    return resources.files("orchestrator.report.html").joinpath(name).read_text()


@cache
def _plotly() -> str:
    """plotly.js as it may stand in a page: with neither a title nor an end of script of its own."""
    source: str = get_plotlyjs().replace("<title>plotly-logomark</title>", "")
    return source.replace("</script", "<\\/script")


def _as_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def figure_html(drawing: FigureOrReason) -> str:
    """Its place in the page, where plotly.js draws it; or why there is none."""
    if not isinstance(drawing, Figure):
        name = drawing.id.replace("-", " ")
        return f'<p class="absent">Left out: {escape(name)}, because {escape(drawing.why)}.</p>'
    labels = [f'<button type="button">{escape(each.label)}</button>' for each in drawing.choices]
    choices = f'<div class="choices">{"".join(labels)}</div>' if labels else ""
    height = drawing.layout["height"]
    return (
        f"<figure><figcaption>{escape(drawing.caption)}</figcaption>{choices}"
        f'<div id="{drawing.id}" class="plot" style="height:{height}px"></div></figure>'
    )


def _facts(known: Json, state: State) -> str:
    models = ", ".join(dict.fromkeys(cohort["model"] for cohort in known["cohorts"]))
    began = state.began_at
    when = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC") if began else ""
    runs = format.count_of(len(format.trained(known)), "run")
    parts = [models, runs, f"{format.duration(known['wall_s'])}", when]
    return " · ".join(escape(part) for part in parts if part)


def _verdict(known: Json, analysis: Json | None) -> str:
    said = verdict.verdict(known)
    lines = [f'<p class="said">{escape(said.sentence)}</p>']
    lines += [f"<p>{escape(sentence)}</p>" for sentence in verdict.about_ensembles(known)]
    warned = [*verdict.cautions(known), *verdict.undetectable(known, analysis)]
    cautions = "".join(f"<li>{escape(each)}</li>" for each in warned)
    cautions = f'<ul class="cautions">{cautions}</ul>' if cautions else ""
    return f'<div class="verdict {said.tone}">{"".join(lines)}</div>{cautions}'
