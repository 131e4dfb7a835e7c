"""The tables of models: recipes and ensembles against the best single run; runs; every metric."""

from collections.abc import Iterable, Iterator
from html import escape

from orchestrator.report import format, verdict
from orchestrator.report.format import Json
from orchestrator.report.model_rows import Row
from orchestrator.report.results import SCORES

SCALED = "ece_scaled"


def table(head: Iterable[str], lines: Iterable[str], kind: str = "") -> str:
    """A table of finished cells: `head` is text, `lines` are rows of HTML."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def recipe_table(known: Json, analysis: Json | None, models: list[Row]) -> str:
    """The best single run, soups and ensembles: every metric, the difference, and the cost."""
    shown = [row for row in models if row.kind != "run" or row.is_best_single]
    metric, judge = known["metric"], verdict.report_split(known)
    splits = format.splits_of(known)
    beside = [name for name in ("macro_f1", "nll", "ece", SCALED, "worst_class") if name != metric]
    head = ["model", "members", *(_split_title(known, split) for split in splits)]
    head += [f"vs best single on {judge}", "p"] if judge else []
    head += [SHORT[name] for name in beside] if judge else []
    head += ["tastes", "seconds"]
    lines = [_line(known, analysis, row, splits, judge, beside) for row in shown]
    return _about(known, judge) + table(head, lines, "recipes sortable")


SHORT = {
    "macro_f1": "macro-F1",
    "nll": "NLL",
    "ece": "ECE",
    SCALED: "ECE, T",
    "worst_class": "worst class",
}


def _about(known: Json, judge: str | None) -> str:
    metric = known["metric"]
    name = format.METRIC_NAMES[metric]
    said = f"<p>{name[0].upper()}{name[1:]} in {format.unit(metric)} by split (images). "
    if judge is None:
        return said + "</p>"
    return said + (
        f"<b>{escape(known['selection'])}</b> chose checkpoints and soups and flatters them; the "
        f"other splits chose nothing. The difference carries its paired 95 % interval, p is the "
        f"exact McNemar test; from there on everything is of <b>{escape(judge)}</b>: "
        "ECE, T is the calibration error after one temperature fitted on the selection split, "
        "seconds are the recipe's own work. Click a heading to sort.</p>"
    )


def _split_title(known: Json, split: str) -> str:
    return f"{split} ({known['splits'][split]['count']})"


def _line(
    known: Json,
    analysis: Json | None,
    row: Row,
    splits: list[str],
    judge: str | None,
    beside: list[str],
) -> str:
    metric = known["metric"]
    cells = [_name_cell(row), number(_members(row))]
    cells += [_score_cell(row, split, metric) for split in splits]
    if judge is not None:
        cells += [_delta_cell(row.deltas.get(judge)), _p_cell(row.deltas.get(judge))]
        cells += [_beside_cell(analysis, row, judge, name) for name in beside]
    cells += [_cost(row, "tastes", "{:.0f}"), _cost(row, "seconds", "{:.1f}")]
    return f'<tr class="{row.kind}{" served" if row.is_served else ""}">{"".join(cells)}</tr>'


def _members(row: Row) -> str:
    """`4 of 6`, `4 of 6 + base`."""
    if row.kind == "run":
        return ""
    members = row.source["members"]
    if row.kind == "ensemble":
        return str(len(members))
    bases = sum(format.is_base(member) for member in members)
    return f"{len(members) - bases} of {row.source['ingredients']}{' + base' * bases}"


def _name_cell(row: Row) -> str:
    marks = ["served"] if row.is_served else []
    marks += ["best single"] if row.is_best_single else []
    chips = "".join(f' <span class="chip {mark[:4]}">{mark}</span>' for mark in marks)
    return f'<td><i class="dot {_tone(row)}"></i>{escape(row.name)}{chips}</td>'


def _tone(row: Row) -> str:
    """Class of the colour that its kind has in every figure."""
    if row.kind == "run":
        return "single" if row.is_best_single else "ingredient"
    return row.kind


def number(shown: str, value: float | None = None, below: str = "") -> str:
    """`value` is what a sorted column goes by."""
    key = f' data-value="{value:.10g}"' if value is not None else ""
    return f'<td class="number"{key}>{escape(shown)}{below}</td>'


def _score_cell(row: Row, split: str, metric: str) -> str:
    value = format.score_of(row.scores, split, metric)
    return number(format.score_text(value, metric), value)


def _delta_cell(delta: Json | None) -> str:
    if not delta:
        return number("")
    low, high = (format.with_sign(end, delta["metric"]) for end in delta["ci95"])
    by = format.with_sign(delta["delta"], delta["metric"])
    return (
        f'<td class="number" data-value="{delta["delta"]:.10g}">'
        f'<b class="{verdict.verdict_of(delta)}">{by}</b> <small>{low} to {high}</small></td>'
    )


def _p_cell(delta: Json | None) -> str:
    value = delta.get("p") if delta else None
    if value is None:
        return number("")
    return number("<0.001" if value < 0.001 else f"{value:.3f}", value)


def _beside_cell(analysis: Json | None, row: Row, split: str, name: str) -> str:
    metric = "ece" if name == SCALED else name
    value = (
        _scaled(analysis, row, split)
        if name == SCALED
        else format.score_of(row.scores, split, metric)
    )
    return number(format.score_text(value, metric), value)


def _scaled(analysis: Json | None, row: Row, split: str) -> float | None:
    """Calibration error after the temperature."""
    if analysis is None or split not in analysis["splits"]:
        return None
    found = analysis["splits"][split]["models"].get(row.model)
    return found["calibration"][SCALED] if found is not None else None


def _cost(row: Row, key: str, how: str) -> str:
    value = row.source.get(key) if row.kind == "soup" else None
    return number("" if value is None else how.format(value), value)


def run_table(known: Json, models: list[Row]) -> str:
    """Every run, and the moving averages beside them."""
    metric, splits = known["metric"], format.splits_of(known)
    head = ["run", "what", "status", *(_split_title(known, split) for split in splits)]
    lines = [_run_line(row, splits, metric) for row in models if row.kind == "run"]
    return table(head, lines, "runs sortable")


def _run_line(row: Row, splits: list[str], metric: str) -> str:
    cells = "".join(_score_cell(row, split, metric) for split in splits)
    return (
        f'<tr class="run {row.status}">{_name_cell(row)}<td class="what">{escape(row.about)}</td>'
        f"<td>{escape(row.status)}</td>{cells}</tr>"
    )


def all_metrics(known: Json, models: list[Row]) -> str:
    """Everything that was scored, folded away."""
    splits = format.splits_of(known)
    head = [
        "model",
        *(f"{split} {format.METRIC_NAMES[name]}" for split in splits for name in SCORES),
    ]
    lines = [_every_score(row, splits) for row in models]
    return (
        "<details><summary>Every metric of every model on every split</summary>"
        f"{table(head, lines, 'every sortable')}</details>"
    )


def _every_score(row: Row, splits: list[str]) -> str:
    return f"<tr>{_name_cell(row)}{''.join(_scores(row, splits))}</tr>"


def _scores(row: Row, splits: list[str]) -> Iterator[str]:
    for split in splits:
        for name in SCORES:
            yield _score_cell(row, split, name)
