"""Texts for numbers and names: scores as percent, differences as points, names of models."""

import json
from collections.abc import Sequence
from typing import Any

from workers.types import WORST, PreflightResult

Json = dict[str, Any]

METRIC_NAMES = {
    "top1": "accuracy",
    "macro_f1": "macro-F1",
    "nll": "negative log-likelihood",
    "ece": "calibration error",
    "worst_class": "worst class",
}

UNKNOWN = "–"
MAX_PARAMS_LENGTH = 30
"""Characters of a run's parameters beside its id."""


def is_fraction(metric: str) -> bool:
    """Whether scores are shown in percent and differences in points, instead of nats."""
    return metric != "nll"


def score_of(scores: Json, split: str, metric: str) -> float | None:
    value: float | None = scores.get(split, {}).get(metric)
    return value


def score_text(value: float | None, metric: str) -> str:
    """`94.07` for a fraction in percent, `0.213` for nats."""
    if value is None:
        return UNKNOWN
    return f"{100 * value:.2f}" if is_fraction(metric) else f"{value:.4f}"


def unit(metric: str) -> str:
    return "%" if is_fraction(metric) else "nats"


def with_sign(value: float, metric: str) -> str:
    """`+1.25` points, or nats."""
    return f"{100 * value:+.2f}" if is_fraction(metric) else f"{value:+.4f}"


def interval(delta: Json | None) -> str:
    """`+1.25 [+0.20, +2.31]`: a difference with its 95 % interval, in points or nats."""
    if not delta:
        return ""
    low, high = (with_sign(end, delta["metric"]) for end in delta["ci95"])
    return f"{with_sign(delta['delta'], delta['metric'])} [{low}, {high}]"


def params(values: Json) -> str:
    """`lr 0.001, seed 3`: the parameters that the sweep set, without section names."""
    parts = (f"{_key(path)} {_value(value)}" for path, value in values.items())
    return ", ".join(parts) or "defaults"


def _key(path: str) -> str:
    return "model" if path == "model.name" else path.rpartition(".")[2]


def _value(value: Any) -> str:
    """A nested value as YAML writes it on one line."""
    is_nested = isinstance(value, list | tuple | dict)
    return json.dumps(value).replace('"', "") if is_nested else str(value)


def about_run(run: Json) -> str:
    """The run's parameters, and the epoch of an early end."""
    early = f"; ended early at epoch {run['epochs']}" if run["ended_early"] else ""
    return params(run["params"]) + early


def trained(results: Json) -> list[Json]:
    """The runs, without their EMAs."""
    return [run for run in results["runs"] if run["role"] != "ema"]


def soup_label(results: Json, soup: Json) -> str:
    """The recipe, and the cohort if there are several."""
    names = {cohort["id"]: cohort["name"] for cohort in results["cohorts"]}
    recipe = str(soup["recipe"])
    return f"{recipe} of {names[soup['cohort']]}" if len(names) > 1 else recipe


def share(soup: Json) -> str:
    """`share_of` for a soup of results.json."""
    return share_of(soup["members"], soup["ingredients"])


def share_of(names: Sequence[str], num_ingredients: int) -> str:
    """`4 of 6 ingredients`; `4 of 6 ingredients, and the base`."""
    members = [name for name in names if not is_base(name)]
    text = f"{len(members)} of {count_of(num_ingredients, 'ingredient')}"
    return f"{text}, and the base" if len(members) < len(names) else text


def is_base(checkpoint: str) -> bool:
    return checkpoint.startswith("base/")


def short_name(results: Json, checkpoint: str) -> str:
    """The run's id, the soup's recipe, or `base`."""
    if is_base(checkpoint):
        return "base"
    soup = next((soup for soup in results["soups"] if soup["id"] == checkpoint), None)
    return soup_label(results, soup) if soup is not None else checkpoint.partition("/")[0]


def model_name(results: Json, checkpoint: str) -> str:
    """`short_name`, followed by the parameters of a run."""
    name = short_name(results, checkpoint)
    run = next((run for run in results["runs"] if run["id"] == name), None)
    if run is None or not run["params"]:
        return name
    about = params(run["params"])
    if len(about) > MAX_PARAMS_LENGTH:
        about = about[:MAX_PARAMS_LENGTH].rstrip(" ,") + "…"
    return f"{name} · {about}"


def candidate(decision: Json) -> str:
    """The run that a decision is about, or the candidate's own name."""
    name: str = decision["run"] or decision["candidate"]
    return name


def duration(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 12 s`, `41 s`."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def fleet_use(results: Json) -> str:
    """Duration of the experiment, and how busy its slots were."""
    used = results["fleet_efficiency"]
    return (
        f"{duration(results['wall_s'])} in total. Slots were busy {percent(used['value'])} of the "
        f"time in which there was work for them, and {percent(used['whole_wall'])} of the total "
        "time."
    )


def percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.0f} %"


def ensemble_name(kind: str) -> str:
    return kind.replace("_", " ")


def fitted(ensemble: Json) -> str:
    """`fitted out of fold` or `fitted on val`."""
    data: str = ensemble["fitted_on"]
    return f"fitted {data}" if data.startswith("out of") else f"fitted on {data}"


def splits_of(results: Json) -> list[str]:
    """The scored splits: selection first, then the report splits."""
    return [name for name in results["splits"] if name != "train"]


def difference_unit(metric: str) -> str:
    return "points" if is_fraction(metric) else "nats"


def selection_text(value: float | None, metric: str) -> str:
    """A selection score, which recipes maximise, as its metric."""
    if value is None or value <= WORST:
        return UNKNOWN
    return score_text(-value if metric == "nll" else value, metric)


def image_counts(facts: PreflightResult) -> str:
    """`train 800, val 170, test 170; folds of train hold out 267, 267, 266`."""
    counts = ", ".join(f"{name} {split.count}" for name, split in facts.splits.items())
    folds = ", ".join(map(str, facts.folds))
    return f"{counts}; folds of train hold out {folds}" if folds else counts


def listing(parts: Sequence[str]) -> str:
    """`a, b and c`"""
    *head, last = parts
    return f"{', '.join(head)} and {last}" if head else last


def count_of(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
