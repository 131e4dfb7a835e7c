"""The rows of every table: runs, soups and ensembles of results.json, in configured order."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.report import format
from orchestrator.report.format import Json


@dataclass(frozen=True)
class Row:
    """A model of the experiment, as every table and figure shows it."""

    kind: str
    """run, soup or ensemble"""
    id: str
    name: str
    about: str
    status: str
    scores: Json
    deltas: Json = field(default_factory=dict)
    """To the best single, by split."""
    model: str | None = None
    """Its id in analysis.json: for a run that of the checkpoint that stands for it."""
    source: Json = field(default_factory=dict)
    """What results.json has of it."""
    is_best_single: bool = False
    is_served: bool = False


def rows(results: Json) -> Iterator[Row]:
    """Runs, soups, ensembles, in configured order."""
    best = results["best_single"]["run"] if results["best_single"] else None
    for run in results["runs"]:
        about = format.about_run(run)
        is_best = run["id"] == best
        scores = results["best_single"]["scores"] if is_best else run["scores"]
        model = results["best_single"]["checkpoint"] if is_best else run["representative"]
        yield Row(
            "run",
            run["id"],
            run["id"],
            about,
            run["status"],
            scores,
            model=model,
            source=run,
            is_best_single=is_best,
        )
    for soup in results["soups"]:
        yield Row(
            "soup",
            soup["id"],
            format.soup_label(results, soup),
            format.share(soup),
            "done",
            soup["scores"],
            soup["vs_best_single"],
            model=soup["id"],
            source=soup,
            is_served=soup["id"] == results["served"],
        )
    for each in results["ensembles"]:
        about = f"{len(each['members'])} models, {len(each['members'])} times the work per image"
        about += f", {format.fitted(each)}" if each["fitted_on"] else ""
        name, scores = format.ensemble_name(each["kind"]), each["scores"]
        yield Row(
            "ensemble",
            each["id"],
            name,
            about,
            "done",
            scores,
            each["vs_best_single"],
            model=each["id"],
            source=each,
        )
