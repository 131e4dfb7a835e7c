"""summary.csv: one row per model of the experiment, and one row per epoch of a run."""

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from orchestrator.report.results import SCORES, Json, collect_results
from orchestrator.schedule.moment import Moment
from orchestrator.state.state import State
from workers.text import csv_cell
from workers.types import SELECTION

CURVE_SCORES = {"score": SELECTION, "held_out": "held out", "ema": f"ema {SELECTION}"}
"""Score of a point of a learning curve -> prefix of its columns."""
ABOUT = ("kind", "id", "label", "cohort", "status", "served", "members", "params")
FIRST = ("top1", "macro_f1", "nll", "ece")
"""Scores whose columns are grouped by split. Later columns are at the end."""
COST = ("tastes", "seconds", "batchnorm")
LATER = ("worst_class", "mcnemar_p", "ece_scaled")


def summary_csv(
    moment: Moment,
    results: Json | None = None,
    analysis: Json | None = None,
) -> str:
    """Runs, soups and ensembles; per split the scores and the difference to the best single run.

    `analysis` holds analysis.json. `results` of None are collected here.
    """
    results = results if results is not None else collect_results(moment)
    splits = [name for name in results["splits"] if name != "train"]
    rows = [*_runs(results), *_soups(results), *_ensembles(results)]
    scored = [
        {**about, **_flat(scores, deltas), **_scaled(analysis, model)}
        for model, about, scores, deltas in rows
    ]
    columns = [column for split in splits for column in _columns(split)]
    later = [f"{split} {name}" for split in splits for name in LATER]
    return _csv([*ABOUT, *columns, *COST, *later], scored)


_ModelScores = tuple[str | None, Json, Json, Json]
"""(id in analysis.json, columns about the model, scores by split, differences by split)"""


def _runs(results: Json) -> Iterable[_ModelScores]:
    for run in results["runs"]:
        kind = "ema" if run["role"] == "ema" else "run"
        about = {"kind": kind, "label": run["id"], "members": 1}
        params = json.dumps(run["params"])
        keys = {key: run[key] for key in ("id", "cohort", "status")}
        yield run["representative"], {**about, **keys, "params": params}, run["scores"], {}


def _soups(results: Json) -> Iterable[_ModelScores]:
    for soup in results["soups"]:
        about = {"kind": "soup", "label": soup["recipe"], "members": len(soup["members"])}
        served = "yes" if soup["id"] == results["served"] else ""
        keys = {"id": soup["id"], "cohort": soup["cohort"], "served": served, "status": "done"}
        cost = {key: soup[key] for key in COST}
        yield soup["id"], {**about, **keys, **cost}, soup["scores"], soup["vs_best_single"]


def _ensembles(results: Json) -> Iterable[_ModelScores]:
    for ensemble in results["ensembles"]:
        about = {"kind": "ensemble", "id": ensemble["id"], "label": ensemble["kind"]}
        members = len(ensemble["members"])
        row = {**about, "members": members, "status": "done"}
        yield ensemble["id"], row, ensemble["scores"], ensemble["vs_best_single"]


def _columns(split: str) -> list[str]:
    difference = ("delta", "ci95_low", "ci95_high")
    return [f"{split} {name}" for name in (*FIRST, *difference)]


def _flat(scores: Json, deltas: Json) -> Json:
    flat = {f"{split} {name}": score[name] for split, score in scores.items() for name in SCORES}
    for split, delta in deltas.items():
        low, high = delta["ci95"]
        flat |= {f"{split} delta": delta["delta"], f"{split} mcnemar_p": delta.get("p")}
        flat |= {f"{split} ci95_low": low, f"{split} ci95_high": high}
    return flat


def _scaled(analysis: Json | None, model: str | None) -> Json:
    """Calibration errors after temperature scaling, by split."""
    splits = analysis["splits"] if analysis is not None else {}
    return {
        f"{split} ece_scaled": of_model["calibration"]["ece_scaled"]
        for split, content in splits.items()
        if (of_model := content["models"].get(model)) is not None
    }


def run_csv(state: State, run_id: str) -> str:
    """The learning curve of a run: one row per epoch, by step."""
    curve = state.run(run_id).curve
    points = [curve[step] for step in sorted(curve)]
    scored = {
        key: prefix
        for key, prefix in CURVE_SCORES.items()
        if any(getattr(point, key) is not None for point in points)
    }
    facts = ["epoch", "step", "time", "loss", "lr", "images_per_s"]
    rows = [
        {name: getattr(point, name) for name in facts}
        | {
            f"{prefix} {name}": getattr(score, name)
            for key, prefix in scored.items()
            if (score := getattr(point, key)) is not None
            for name in SCORES
        }
        for point in points
    ]
    columns = [f"{prefix} {name}" for prefix in scored.values() for name in SCORES]
    return _csv([*facts, *columns], rows)


def _csv(columns: list[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
