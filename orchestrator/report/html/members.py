"""Members: who is in each soup, who is not, and why."""

from collections.abc import Iterator
from html import escape

from orchestrator.report import format
from orchestrator.report.format import Json


def members(known: Json) -> Iterator[str]:
    """A heading, a line of facts and a table per soup; the served one first."""
    params = {run["id"]: format.about_run(run) for run in known["runs"]}
    ordered = sorted(known["soups"], key=lambda soup: soup["id"] != known["served"])
    for soup in ordered:
        chip = ' <span class="chip">served</span>' if soup["id"] == known["served"] else ""
        open_ = " open" if soup["id"] == known["served"] else ""
        name = escape(format.soup_label(known, soup))
        yield (
            f"<details{open_}><summary><b>{name}</b>{chip} {_facts(soup)}"
            f"</summary>{_decisions(soup, params, known['metric'])}</details>"
        )


def _facts(soup: Json) -> str:
    tasted = (
        f"{format.count_of(soup['tastes'], 'taste')}, {soup['samples_forwarded']} images looked at"
        if soup["tastes"]
        else "nothing had to be tasted"
    )
    options = ", ".join(f"{key}: {value}" for key, value in soup["options"].items())
    facts = [
        format.share(soup),
        options,
        tasted,
        f"{soup['seconds']:.1f} s of work",
        f"BatchNorm: {soup['batchnorm']}",
        soup["id"],
    ]
    return escape(" · ".join(fact for fact in facts if fact))


def _decisions(soup: Json, params: dict[str, str], metric: str) -> str:
    head = ["", "candidate", "what", "verdict", "soup without", "soup with", "why"]
    cells = "".join(f"<th>{name}</th>" for name in head)
    runs = [decision["run"] for decision in soup["decisions"]]
    lines = [
        _line(index + 1, decision, params.get(decision["run"] or "", ""), metric, runs)
        for index, decision in enumerate(soup["decisions"])
    ]
    return (
        f'<div class="scroll"><table class="members"><thead><tr>{cells}</tr></thead><tbody>'
        f"{''.join(lines)}</tbody></table></div>"
    )


def _line(number: int, decision: Json, what: str, metric: str, runs: list[str | None]) -> str:
    """`runs` are those of all candidates: where one has several, the step tells them apart."""
    name = format.candidate(decision)
    if decision["run"] is not None and runs.count(decision["run"]) > 1:
        name += f" step {int(decision['candidate'].partition('/')[2].partition('-')[0])}"
    said = "accepted" if decision["accepted"] else "refused"
    with_it = format.selection_text(decision["after"], metric)
    if decision["after"] is None and decision["at_most"] is not None:
        bound = "at least" if metric == "nll" else "at most"
        with_it = f"{bound} {format.selection_text(decision['at_most'], metric)}"
    return (
        f'<tr class="{said}"><td class="number">{number}</td>'
        f'<td title="{escape(decision["candidate"])}">{escape(name)}</td>'
        f'<td class="what">{escape(what)}</td><td><span class="chip">{said}</span></td>'
        f'<td class="number">{format.selection_text(decision["before"], metric)}</td>'
        f'<td class="number">{with_it}</td><td>{escape(decision["reason"])}</td></tr>'
    )
