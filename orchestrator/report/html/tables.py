"""Tables and texts of the page as values; the templates turn them into HTML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from orchestrator.report import format, verdict
from orchestrator.report.format import Json
from orchestrator.report.model_rows import Row
from orchestrator.report.results import SCORES
from workers.storage.layout import SERVED

SCALED = "ece_scaled"
SHORT_NAMES = {
    "macro_f1": "macro-F1",
    "nll": "NLL",
    "ece": "ECE",
    SCALED: "ECE, T",
    "worst_class": "worst class",
}


@dataclass(frozen=True)
class Cell:
    text: str
    kind: str = ""
    """CSS class: `number`, `params` or `hash`."""
    sort_value: float | None = None
    """Value that a sorted column compares. None: the text."""
    tooltip: str = ""
    tone: str = ""
    """CSS class of a bold text: `better`, `worse` or `unsure`."""
    interval: str = ""
    """Small text after the text."""
    dot: str = ""
    """CSS class of the coloured dot before the text."""
    chips: tuple[str, ...] = ()
    """Labels after the text."""


@dataclass(frozen=True)
class Column:
    title: str
    is_number: bool = False


@dataclass(frozen=True)
class TableRow:
    cells: Sequence[Cell]
    kind: str = ""
    """CSS classes."""


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[TableRow]
    kind: str = ""
    """CSS classes."""
    template: ClassVar[str] = "table.html.j2"


@dataclass(frozen=True)
class FoldedTable:
    summary: str
    table: Table
    template: ClassVar[str] = "folded_table.html.j2"


@dataclass(frozen=True)
class Paragraph:
    text: str
    template: ClassVar[str] = "paragraph.html.j2"


def _texts(*titles: str) -> list[Column]:
    return [Column(title) for title in titles]


def _numbers(*titles: str) -> list[Column]:
    return [Column(title, is_number=True) for title in titles]


def number(text: str, value: float | None = None) -> Cell:
    return Cell(text, "number", sort_value=value)


# Models


@dataclass(frozen=True)
class RecipeIntro:
    """Explanation of the table of recipes."""

    metric: str
    unit: str
    selection: str
    report_split: str | None
    template: ClassVar[str] = "recipe_intro.html.j2"


def recipe_intro(results: Json) -> RecipeIntro:
    metric = results["metric"]
    return RecipeIntro(
        format.METRIC_NAMES[metric],
        format.unit(metric),
        results["selection"],
        verdict.report_split(results),
    )


def recipe_table(results: Json, analysis: Json | None, models: Sequence[Row]) -> Table:
    """Best single run, soups and ensembles: every metric, the difference, and the cost."""
    rows = [row for row in models if row.kind != "run" or row.is_best_single]
    metric, split = results["metric"], verdict.report_split(results)
    metrics = [name for name in SHORT_NAMES if name != metric] if split is not None else []
    columns = _texts("model") + _numbers("members", *_split_titles(results))
    if split is not None:
        columns += _numbers(f"vs best single on {split}", "p")
        columns += _numbers(*(SHORT_NAMES[name] for name in metrics))
    columns += _numbers("tastes", "seconds")
    lines = []
    for row in rows:
        cells = [_name(row), number(_members(row)), *_score_cells(results, row)]
        if split is not None:
            delta = row.deltas.get(split)
            cells += [_difference(delta), _p_value(delta)]
            cells += [_metric(analysis, row, split, name) for name in metrics]
        cells += [_cost(row, "tastes", "{:.0f}"), _cost(row, "seconds", "{:.1f}")]
        lines.append(TableRow(cells, f"{row.kind} served" if row.is_served else row.kind))
    return Table(columns, lines, "recipes sortable")


def run_table(results: Json, models: Sequence[Row]) -> Table:
    """Every run, and the EMA beside it."""
    columns = _texts("run", "parameters", "status") + _numbers(*_split_titles(results))
    lines = [
        TableRow(
            [
                _name(row),
                Cell(row.about, "params"),
                Cell(row.status),
                *_score_cells(results, row),
            ],
            f"run {row.status}",
        )
        for row in models
        if row.kind == "run"
    ]
    return Table(columns, lines, "runs sortable")


def metric_table(results: Json, models: Sequence[Row]) -> FoldedTable:
    """Every metric of every model on every split."""
    pairs = [(split, name) for split in format.splits_of(results) for name in SCORES]
    titles = (f"{split} {format.METRIC_NAMES[name]}" for split, name in pairs)
    lines = [
        TableRow([_name(row), *(_score(row, split, name) for split, name in pairs)])
        for row in models
    ]
    table = Table(_texts("model") + _numbers(*titles), lines, "every sortable")
    return FoldedTable("Every metric of every model on every split", table)


def _split_titles(results: Json) -> list[str]:
    return [f"{split} ({results['splits'][split]['count']})" for split in format.splits_of(results)]


def _name(row: Row) -> Cell:
    chips = ["served"] if row.is_served else []
    chips += ["best single"] if row.is_best_single else []
    return Cell(row.name, dot=_dot(row), chips=tuple(chips))


def _dot(row: Row) -> str:
    """The colour that this kind of model has in every figure."""
    if row.kind == "run":
        return "single" if row.is_best_single else "ingredient"
    return row.kind


def _members(row: Row) -> str:
    """`4 of 6`, `4 of 6 + base`."""
    if row.kind == "run":
        return ""
    members = row.source["members"]
    if row.kind == "ensemble":
        return str(len(members))
    num_bases = sum(format.is_base(member) for member in members)
    num_ingredients = row.source["ingredients"]
    return f"{len(members) - num_bases} of {num_ingredients}{' + base' * num_bases}"


def _score_cells(results: Json, row: Row) -> list[Cell]:
    return [_score(row, split, results["metric"]) for split in format.splits_of(results)]


def _score(row: Row, split: str, metric: str) -> Cell:
    value = format.score_of(row.scores, split, metric)
    return number(format.score_text(value, metric), value)


def _difference(delta: Json | None) -> Cell:
    if not delta:
        return number("")
    low, high = (format.with_sign(end, delta["metric"]) for end in delta["ci95"])
    return Cell(
        format.with_sign(delta["delta"], delta["metric"]),
        "number",
        sort_value=delta["delta"],
        tone=verdict.verdict_of(delta),
        interval=f"{low} to {high}",
    )


def _p_value(delta: Json | None) -> Cell:
    value = delta.get("p") if delta else None
    if value is None:
        return number("")
    return number("<0.001" if value < 0.001 else f"{value:.3f}", value)


def _metric(analysis: Json | None, row: Row, split: str, name: str) -> Cell:
    if name != SCALED:
        return _score(row, split, name)
    value = _scaled_ece(analysis, row, split)
    return number(format.score_text(value, "ece"), value)


def _scaled_ece(analysis: Json | None, row: Row, split: str) -> float | None:
    """Calibration error after temperature scaling. None: not analysed."""
    models = analysis["splits"].get(split, {}).get("models", {}) if analysis is not None else {}
    model = models.get(row.model)
    return model["calibration"][SCALED] if model is not None else None


def _cost(row: Row, key: str, pattern: str) -> Cell:
    value = row.source.get(key) if row.kind == "soup" else None
    return number("" if value is None else pattern.format(value), value)


# Members of soups


@dataclass(frozen=True)
class SoupMembers:
    """The decisions that made a soup, folded away unless it is served."""

    name: str
    is_served: bool
    facts: Sequence[str]
    decisions: Table
    template: ClassVar[str] = "members.html.j2"


def soup_members(results: Json) -> list[SoupMembers]:
    """One part per soup; the served one first."""
    params = {run["id"]: format.about_run(run) for run in results["runs"]}
    soups = sorted(results["soups"], key=lambda soup: soup["id"] != results["served"])
    return [
        SoupMembers(
            format.soup_label(results, soup),
            soup["id"] == results["served"],
            _soup_facts(soup),
            _decision_table(soup, params, results["metric"]),
        )
        for soup in soups
    ]


def _soup_facts(soup: Json) -> list[str]:
    tastes = (
        f"{format.count_of(soup['tastes'], 'taste')}, {soup['samples_forwarded']} images forwarded"
        if soup["tastes"]
        else "no tastes"
    )
    facts = [
        format.share(soup),
        ", ".join(f"{key}: {value}" for key, value in soup["options"].items()),
        tastes,
        f"{soup['seconds']:.1f} s of work",
        f"BatchNorm: {soup['batchnorm']}",
        soup["id"],
    ]
    return [fact for fact in facts if fact]


def _decision_table(soup: Json, params: dict[str, str], metric: str) -> Table:
    columns = _texts("", "candidate", "parameters", "decision")
    columns += _numbers("soup without", "soup with") + _texts("reason")
    runs = [decision["run"] for decision in soup["decisions"]]
    lines = []
    for index, decision in enumerate(soup["decisions"]):
        outcome = "accepted" if decision["accepted"] else "refused"
        cells = [
            number(str(index + 1)),
            Cell(_candidate(decision, runs), tooltip=decision["candidate"]),
            Cell(params.get(decision["run"] or "", ""), "params"),
            Cell("", chips=(outcome,)),
            number(format.selection_text(decision["before"], metric)),
            number(_score_with(decision, metric)),
            Cell(decision["reason"]),
        ]
        lines.append(TableRow(cells, outcome))
    return Table(columns, lines, "members")


def _candidate(decision: Json, runs: list[str | None]) -> str:
    """The run of the candidate; with its step if the run has several candidates in `runs`."""
    name = format.candidate(decision)
    if decision["run"] is not None and runs.count(decision["run"]) > 1:
        name += f" step {int(decision['candidate'].partition('/')[2].partition('-')[0])}"
    return name


def _score_with(decision: Json, metric: str) -> str:
    """Score of the soup with the candidate, or its bound if the taste was stopped early."""
    if decision["after"] is None and decision["at_most"] is not None:
        bound = "at least" if metric == "nll" else "at most"
        return f"{bound} {format.selection_text(decision['at_most'], metric)}"
    return format.selection_text(decision["after"], metric)


# The experiment


def failure_table(results: Json) -> Table | None:
    """Failed orders. None: no order failed."""
    if not results["failures"]:
        return None
    columns = _texts("order") + _numbers("times") + _texts("last message", "outcome")
    lines = [
        TableRow(
            [
                Cell(failure["order"]),
                number(str(failure["times"])),
                Cell(failure["message"] or ""),
                Cell(failure["gave_up"] or "resolved by another attempt"),
            ],
            "failed" if failure["gave_up"] else "",
        )
        for failure in results["failures"]
    ]
    return Table(columns, lines)


def data_parts(results: Json) -> Iterator[Paragraph | Table]:
    """Splits with their fingerprints, folds, classes, and images that do not decode."""
    yield Paragraph(
        "A fingerprint is the sha256 over key, label and content of every image of a split. "
        "Equal fingerprints: equal data."
    )
    lines = [
        TableRow([Cell(name), number(str(split["count"])), Cell(split["fingerprint"], "hash")])
        for name, split in results["splits"].items()
    ]
    yield Table(_texts("split") + _numbers("images") + _texts("fingerprint"), lines)
    if results["folds"]:
        yield Paragraph(
            f"{len(results['folds'])} folds of train hold out "
            f"{', '.join(map(str, results['folds']))} images. What a run holds out ends its "
            "training early and fits stacked classifiers, nothing else."
        )
    yield Paragraph(f"{len(results['classes'])} classes: {', '.join(results['classes'])}.")
    if corrupt := results["corrupt"]:
        keys = ", ".join(corrupt[:20]) + (" and more" if len(corrupt) > 20 else "")
        images = format.count_of(len(corrupt), "image")
        yield Paragraph(f"Left out of all splits for decode errors: {images} ({keys}).")


@dataclass(frozen=True)
class Loading:
    """Code that loads the served soup with timm."""

    folder: str
    copy_from: str = ""
    """Remote store that the folder must be copied from."""
    served: str = SERVED
    template: ClassVar[str] = "loading.html.j2"


def loading(results: Json) -> Loading | None:
    """None: no soup is served."""
    if results["served"] is None:
        return None
    uri = results["uri"]
    return Loading(SERVED, copy_from=uri) if "://" in uri else Loading(f"{uri}/{SERVED}")
