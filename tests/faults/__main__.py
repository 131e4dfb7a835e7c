"""Soaks the tiny experiment in seeded trouble, and prints what it cost as a table.

    python -m tests.faults [--minutes 5] [--seed 0] [--only NAME ...] [--json FILE]

The exit code is 1 if anything was lost, served with other bytes, used silently, or left behind.
Scenarios take turns until the time is over; each one has a seed of its own.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, astuple, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults import cluster_scenarios, scenarios
from tests.faults.soak import Outcome, Scenario, Soak

SCENARIOS: dict[str, Scenario] = {
    "drivers killed": scenarios.kill_drivers,
    "drivers frozen, taken over": scenarios.freeze_driver,
    "disks full or failing": scenarios.fail_disk,
    "files changed, finished": scenarios.change_finished,
    "files changed, interrupted": scenarios.change_interrupted,
    "fleet struck": cluster_scenarios.strike_fleet,
    "gang struck": cluster_scenarios.strike_gang,
}


def main() -> int:
    arguments = _parser().parse_args()
    names = [name for name in SCENARIOS if not arguments.only or name in arguments.only]
    with tempfile.TemporaryDirectory() as root, Soak(Path(root)) as soak:
        outcomes = soak_for(soak, names, arguments.minutes * 60, arguments.seed)
    Console(width=None if sys.stdout.isatty() else 120).print(_table(outcomes))
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}, indent=1)
        )
    return 0 if all(outcome.is_clean for outcome in outcomes.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(SCENARIOS), default=())
    parser.add_argument("--json", metavar="FILE")
    return parser


def soak_for(soak: Soak, names: list[str], seconds: float, seed: int) -> dict[str, Outcome]:
    """The sum of outcomes by scenario. A scenario that is not clean is printed with its seed."""
    outcomes = {name: Outcome() for name in names}
    deadline, turn = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        name = names[turn % len(names)]
        outcome = SCENARIOS[name](soak, random.Random(f"{seed} {turn}"))
        outcomes[name] += outcome
        if not outcome.is_clean:
            print(f"turn {turn} of seed {seed}, {name}: {outcome}", flush=True)
        turn += 1
    return outcomes


def _table(outcomes: dict[str, Outcome]) -> Table:
    table = Table(title="Trouble, and what it cost")
    table.add_column("trouble")
    for field in fields(Outcome):
        table.add_column(field.name.replace("_", " "), justify="right")
    total = sum(outcomes.values(), Outcome())
    for name, outcome in [*outcomes.items(), ("all", total)]:
        table.add_row(name, *map(str, astuple(outcome)))
    return table


if __name__ == "__main__":
    sys.exit(main())
