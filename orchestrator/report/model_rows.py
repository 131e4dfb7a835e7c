"""The rows of every table: runs, soups and ensembles of results.json, in configured order."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.report import format
from orchestrator.report.format import Json


@dataclass(frozen=True)
class Row:
    """A model of the experiment as tables and figures show it."""

    kind: str
    """`run`, `soup` or `ensemble`."""
    id: str
    name: str
    about: str
    status: str
    scores: Json
    deltas: Json = field(default_factory=dict)
    """Differences to the best single run, by split."""
    model: str | None = None
    """Id in analysis.json: of the soup, the ensemble, or the run's representative checkpoint."""
    source: Json = field(default_factory=dict)
    """Entry in results.json."""
    is_best_single: bool = False
    is_served: bool = False


def rows(results: Json) -> Iterator[Row]:
    """Runs, soups, ensembles; each in configured order."""
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
    for ensemble in results["ensembles"]:
        num_members = len(ensemble["members"])
        about = f"{num_members} models, {num_members} times the work per image"
        about += f", {format.fitted(ensemble)}" if ensemble["fitted_on"] else ""
        yield Row(
            "ensemble",
            ensemble["id"],
            format.ensemble_name(ensemble["kind"]),
            about,
            "done",
            ensemble["scores"],
            ensemble["vs_best_single"],
            model=ensemble["id"],
            source=ensemble,
        )
