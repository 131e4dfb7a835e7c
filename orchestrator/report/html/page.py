"""report.html: one file that needs no network, for a reader who was not there."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from orchestrator.report import format, verdict
from orchestrator.report.format import Json
from orchestrator.report.html import tables
from orchestrator.report.html.calibration import reliability_figure
from orchestrator.report.html.coefficients import coefficients_figure
from orchestrator.report.html.differences import differences_figure
from orchestrator.report.html.errors import bias_variance_figure, confusion_figure
from orchestrator.report.html.learning_curves import learning_curves
from orchestrator.report.html.model_map import model_map_figure
from orchestrator.report.html.plot_style import Figure, FigureOrReason
from orchestrator.report.html.robustness import robustness_figures
from orchestrator.report.html.selection_steps import selection_steps_figure
from orchestrator.report.html.sync_rounds import round_parts
from orchestrator.report.html.timeline import timeline
from orchestrator.report.html.weight_space import barrier_figure, cosines_figure
from orchestrator.report.model_rows import rows
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from workers.text import printable, printable_values

Part = FigureOrReason | (
    tables.Table
    | tables.FoldedTable
    | tables.Paragraph
    | tables.RecipeIntro
    | tables.SoupMembers
    | tables.Loading
)
"""A value with the name of the template that shows it."""


@dataclass(frozen=True)
class PageSection:
    anchor: str
    title: str
    parts: tuple[Part | None, ...]
    """None: nothing to show."""


def report_html(results: Json, moment: Moment, analysis: Json | None = None) -> str:
    """The page. `analysis` holds analysis.json. Curves and timeline show the moment's state."""
    sections = [
        PageSection(section.anchor, section.title, parts)
        for section in _sections(results, moment, analysis)
        if (parts := tuple(part for part in section.parts if part is not None))
    ]
    figures = [
        printable_values(asdict(part))
        for section in sections
        for part in section.parts
        if isinstance(part, Figure)
    ]
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            name=results["name"],
            num_runs=_num_runs(results),
            facts=list(_facts(results, moment.state)),
            verdict=verdict.verdict(results),
            ensembles=verdict.about_ensembles(results),
            cautions=[*verdict.cautions(results), *verdict.undetectable(results, analysis)],
            sections=sections,
            figures=figures,
            style=_resource("style.css"),
            script=_resource("script.js"),
            plotly=_plotly(),
        )
    )


def _sections(results: Json, moment: Moment, analysis: Json | None) -> Iterator[PageSection]:
    models = list(rows(results))
    yield PageSection(
        "recipes",
        "Recipes",
        (
            tables.recipe_intro(results),
            tables.recipe_table(results, analysis, models),
            differences_figure(results, models),
            tables.metric_table(results, models),
        ),
    )
    yield PageSection("shift", "On shifted data", robustness_figures(results, models))
    yield PageSection("alike", "Similar predictions", (model_map_figure(analysis, models),))
    yield PageSection(
        "choices",
        "Ingredients of the soups",
        (
            selection_steps_figure(results),
            coefficients_figure(results),
            *tables.soup_members(results),
        ),
    )
    yield PageSection(
        "weights",
        "In weight space",
        (cosines_figure(results, analysis), barrier_figure(results, analysis)),
    )
    yield PageSection(
        "errors",
        "Errors",
        (
            reliability_figure(analysis),
            bias_variance_figure(results, analysis),
            confusion_figure(results, analysis),
        ),
    )
    yield PageSection("runs", "Runs", (learning_curves(moment), tables.run_table(results, models)))
    yield PageSection("rounds", "Merges during training", round_parts(results))
    yield PageSection("failures", "Failures", (tables.failure_table(results),))
    use = tables.Paragraph(format.fleet_use(results))
    yield PageSection("fleet", "The fleet", (use, timeline(moment.state)))
    yield PageSection("data", "The data", tuple(tables.data_parts(results)))
    yield PageSection("load", "Load the soup", (tables.loading(results),))


def _facts(results: Json, state: State) -> Iterator[str]:
    """The line below the title."""
    if results["cohorts"]:
        yield ", ".join(dict.fromkeys(cohort["model"] for cohort in results["cohorts"]))
    yield _num_runs(results)
    yield format.duration(results["wall_s"])
    if state.began_at:
        yield datetime.fromtimestamp(state.began_at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _num_runs(results: Json) -> str:
    return format.count_of(len(format.trained(results)), "run")


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator.report.html"),
        autoescape=True,
        finalize=_without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def _without_controls(value: Any) -> Any:
    """What a template inserts; text that is no markup of ours cannot hide or reverse anything."""
    return printable(value) if type(value) is str else value


def _resource(name: str) -> str:
    return resources.files("orchestrator.report.html").joinpath(name).read_text()


@cache
def _plotly() -> str:
    """plotly.js without the title and the end of script that would break the page."""
    source: str = get_plotlyjs().replace("<title>plotly-logomark</title>", "")
    return source.replace("</script", "<\\/script")
