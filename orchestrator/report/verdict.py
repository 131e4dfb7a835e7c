"""The verdict: what the experiment shows, in sentences that claim no more than their intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from orchestrator.report import format
from orchestrator.report.format import Json

Z95 = 1.96
"""Half a 95 % interval in standard errors."""

FAR, FAR_NATS = 0.1, 0.5
"""A mean this far below its worst member is broken, not merely worse."""


@dataclass(frozen=True)
class Verdict:
    tone: Literal["better", "worse", "unsure", "none"]
    sentence: str


def verdict(results: Json) -> Verdict:
    """Does the served soup beat the best single run, on data that chose neither?"""
    soup = served(results)
    if soup is None:
        return Verdict("none", f"No soup is served. {_why_none(results)}")
    split = report_split(results)
    delta = soup["vs_best_single"].get(split) if split is not None else None
    if delta is None:
        return Verdict(
            "none", f"The served soup ({_what(results, soup)}) was not compared on a report split."
        )
    if soup["members"] == [results["best_single"]["checkpoint"]]:
        return Verdict("unsure", _itself(results, soup, str(split)))
    tone = verdict_of(delta)
    against = (
        f"{_shown(results, soup, split)} against {_shown(results, results['best_single'], split)}, "
        f"{_difference(delta)}"
    )
    ours, rival = f"the served soup ({_what(results, soup)})", f"the best single run on {split}"
    sentences = {
        "better": f"The{ours[3:]} beats {rival}: {against}.",
        "worse": f"The{ours[3:]} is worse than {rival}: {against}.",
        "unsure": f"Cannot tell whether {ours} beats {rival}: {against}, which contains 0.",
    }
    return Verdict(tone, sentences[tone])


def verdict_of(delta: Json) -> Literal["better", "worse", "unsure"]:
    """Verdict by the 95 % interval. A negative log-likelihood is better when lower."""
    low, high = delta["ci95"]
    if delta["metric"] == "nll":
        low, high = -high, -low
    if low > 0:
        return "better"
    return "worse" if high < 0 else "unsure"


def served(results: Json) -> Json | None:
    return next((soup for soup in results["soups"] if soup["id"] == results["served"]), None)


def report_split(results: Json) -> str | None:
    """The split of the verdict: `test`, or the last report split. Never the selection split."""
    report = [split for split in format.splits_of(results) if split != results["selection"]]
    if "test" in report:
        return "test"
    return report[-1] if report else None


def _what(results: Json, soup: Json) -> str:
    name = format.soup_label(results, soup)
    return f"{name}, {format.share(soup)}"


def _why_none(results: Json) -> str:
    failed = [run for run in format.trained(results) if run["status"] == "failed"]
    if failed and len(failed) == len(format.trained(results)):
        return f"All {len(failed)} runs failed; the first because {failed[0]['failure']}."
    return "No soup has been made yet, or the experiment has not ended."


def _itself(results: Json, soup: Json, split: str) -> str:
    return (
        f"The served soup ({_what(results, soup)}) is the best single run itself, "
        f"{_shown(results, soup, split)} on {split}: no mixture was preferred to it on the "
        "selection split."
    )


def _shown(results: Json, model: Json, split: str | None) -> str:
    metric = results["metric"]
    value = format.score_of(model["scores"], split or "", metric)
    return f"{format.score_text(value, metric)} {format.unit(metric)}"


def _difference(delta: Json) -> str:
    low, high = (format.with_sign(end, delta["metric"]) for end in delta["ci95"])
    by = format.with_sign(delta["delta"], delta["metric"])
    return f"{by} {format.difference_unit(delta['metric'])} with a 95 % interval of {low} to {high}"


def about_ensembles(results: Json) -> list[str]:
    """A sentence per ensemble: its difference to the best single run, and to the soup's."""
    soup, split = served(results), report_split(results)
    if soup is None or split is None:
        return []
    return [
        sentence
        for ensemble in results["ensembles"]
        if (sentence := _about_ensemble(results, soup, ensemble, split)) is not None
    ]


def _about_ensemble(results: Json, soup: Json, ensemble: Json, split: str) -> str | None:
    ours, theirs = (model["vs_best_single"].get(split) for model in (soup, ensemble))
    if ours is None or theirs is None:
        return None
    times = len(ensemble["members"])
    name = format.ensemble_name(ensemble["kind"]).capitalize()
    name += f" ({format.fitted(ensemble)})" if ensemble["fitted_on"] else ""
    by = format.with_sign(ours["delta"] - theirs["delta"], ours["metric"])
    unit = format.difference_unit(ours["metric"])
    return (
        f"{name} of {times} models, at {times} times the work per image, scores "
        f"{_shown(results, ensemble, split)} ({_difference(theirs)}); the soup minus it is {by} "
        f"{unit}, {_overlap(ours, theirs)}."
    )


def _overlap(ours: Json, theirs: Json) -> str:
    """Only intervals that do not overlap prove a difference."""
    if ours["ci95"][0] > theirs["ci95"][1] or theirs["ci95"][0] > ours["ci95"][1]:
        return "and their intervals do not overlap"
    return "and since their intervals overlap, this does not settle which is better"


def cautions(results: Json) -> list[str]:
    """Caveats of the numbers, for the page."""
    runs = format.trained(results)
    failed = [run for run in runs if run["status"] == "failed"]
    stopped = [run for run in runs if run["status"] == "stopped"]
    total = len(runs)
    sentences = [f"{len(failed)} of {total} runs failed and are in no soup."] if failed else []
    if stopped:
        reason = f" ({results['finish_reason']})" if results["finish_reason"] else ""
        sentences.append(f"{len(stopped)} of {total} runs ended before their last epoch{reason}.")
    return [*sentences, *_outside_basin(results), *warnings(results)]


def warnings(results: Json) -> list[str]:
    """The caveats that the terminal shows too."""
    small = small_selection_split(results)
    return [*([small] if small is not None else []), *_far_below(results), *results["warnings"]]


def _outside_basin(results: Json) -> list[str]:
    """Runs that were left out of every mixture for a barrier."""
    outside = {
        str(decision["run"])
        for soup in results["soups"]
        for decision in soup["decisions"]
        if decision["reason"].startswith("outside the basin")
    }
    names = ", ".join(sorted(outside))
    which = f"{format.count_of(len(outside), 'ingredient')} outside the basin of the best one"
    return [f"Left out of every mixture: {which} ({names})."] if outside else []


def _far_below(results: Json) -> Iterator[str]:
    """Warnings of means far below all of their members: these are not in one basin."""
    metric, split = results["metric"], results["selection"]
    sign, far = (1, FAR) if format.is_fraction(metric) else (-1, FAR_NATS)
    for soup in results["soups"]:
        ours, lowest = format.score_of(soup["scores"], split, metric), _lowest_member(results, soup)
        # Under the other policies, BatchNorm statistics could be the cause.
        if soup["recipe"] not in ("uniform", "uniform@recompute") or ours is None or lowest is None:
            continue
        if sign * (lowest - ours) > far:
            unit = format.unit(metric)
            score, worst = (format.score_text(value, metric) for value in (ours, lowest))
            yield (
                f"The soup {format.soup_label(results, soup)} scores {score} {unit} on {split}, "
                f"far below each of its members (the lowest {worst} {unit}): they are not in one "
                "basin of the loss. Try soup.basin, which leaves out runs behind a barrier."
            )


def _lowest_member(results: Json, soup: Json) -> float | None:
    """The worst selection score of the runs whose representative is a member."""
    metric, split = results["metric"], results["selection"]
    scores = [
        score
        for run in results["runs"]
        if run["representative"] in soup["members"]
        and (score := format.score_of(run["scores"], split, metric)) is not None
    ]
    worst = min if format.is_fraction(metric) else max
    return worst(scores, default=None)


def small_selection_split(results: Json) -> str | None:
    """A warning if 1.96 standard errors, sqrt(p (1 - p) / n), of an accuracy exceed a point."""
    name = results["selection"]
    count = results["splits"].get(name, {}).get("count", 0)
    best = results["best_single"]
    accuracy = format.score_of(best["scores"], name, "top1") if best else None
    if accuracy is None or not count:
        return None
    standard_error = sqrt(accuracy * (1 - accuracy) / count)
    if Z95 * standard_error <= 0.01:
        return None
    return (
        f"The selection split has only {count} images: an accuracy of {100 * accuracy:.1f} % has a "
        f"standard error of {100 * standard_error:.1f} points there. It cannot resolve differences "
        "of a point, so the choice of ingredients is partly luck."
    )


def undetectable(results: Json, analysis: Json | None) -> Iterator[str]:
    """A warning if the soup's gain on the selection split is too small to be detected there."""
    soup, name = served(results), results["selection"]
    split = analysis["splits"].get(name) if analysis is not None else None
    paired = split["paired"] if split is not None else None
    delta = soup["vs_best_single"].get(name) if soup is not None else None
    if paired is None or delta is None or delta["metric"] != "top1":
        return
    if abs(delta["delta"]) < paired["detectable"]:
        yield (
            f"On {name}, which chose it, the served soup gained {100 * delta['delta']:.2f} points; "
            f"with its {results['splits'][name]['count']} images only a gain of "
            f"{100 * paired['detectable']:.2f} points would be detected four times in five."
        )
