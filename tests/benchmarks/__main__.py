"""All benchmarks in one table of ratios, each against a reference measured in the same run.

    python -m tests.benchmarks [NAME ...] [--quick]

Every benchmark has a process of its own. Run them on an idle machine. `--quick` takes small sizes
and only checks that they run.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A row of the table: a figure of a benchmark and its aim."""

    module: str
    what: str
    against: str
    aim: str
    figure: str
    is_met: Callable[[float], bool]
    arguments: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row(
        "checkpoint_stall",
        "stall of training per checkpoint",
        "the same checkpoint, written synchronously",
        "at most 0.05",
        "ratio",
        lambda ratio: ratio <= 0.05,
        quick={"mib": 24},
    ),
    Row(
        "uniform_mean",
        "uniform mean of 16 checkpoints",
        "reading their bytes once",
        "at most 1.3",
        "ratio",
        lambda ratio: ratio <= 1.3,
        quick={"count": 4, "mib": 20},
    ),
    Row(
        "uniform_mean",
        "its anonymous memory",
        "one model",
        "about 2",
        "models_of_memory",
        lambda models: models <= 2.2,
        quick={"count": 4, "mib": 20},
    ),
    Row(
        "learned_memory",
        "anonymous memory of a gradient, 8 ViT-B",
        "a plain backward pass of one",
        "at most 1.1",
        "question_ratio",
        lambda ratio: ratio <= 1.1,
        quick={"model": "vit_tiny_patch16_224", "count": 3},
    ),
    Row(
        "learned_memory",
        "the same, all of `learned`",
        "a plain backward pass of one",
        "at most 1.1",
        "learned_ratio",
        lambda ratio: ratio <= 1.1,
        quick={"model": "vit_tiny_patch16_224", "count": 3},
    ),
    Row(
        "learned_memory",
        "the same, all of `mehl`",
        "a plain backward pass of one",
        "at most 1.1",
        "mehl_ratio",
        lambda ratio: ratio <= 1.1,
        quick={"model": "vit_tiny_patch16_224", "count": 3},
    ),
    Row(
        "greedy_tastes",
        "images forwarded, LayerNorm net",
        "textbook greedy",
        "at most 0.45",
        "samples_ratio",
        lambda ratio: ratio <= 0.45,
        arguments={"model": "VIT"},
        quick={"count": 4},
    ),
    Row(
        "greedy_tastes",
        "wall time, LayerNorm net",
        "textbook greedy, cached images",
        "2x",
        "speedup",
        lambda speedup: speedup >= 2,
        arguments={"model": "VIT"},
        quick={"count": 4},
    ),
    Row(
        "greedy_tastes",
        "wall time, BatchNorm net",
        "textbook greedy, cached images",
        "for comparison",
        "speedup",
        lambda speedup: True,
        arguments={"model": "RESNET"},
        quick={"count": 4},
    ),
    Row(
        "train_rate",
        "training step rate",
        "a plain loop with timm",
        "1.0x",
        "ratio",
        lambda ratio: ratio >= 1.0,
        quick={"steps": 4},
    ),
    Row(
        "train_rate",
        "losses of three epochs, largest gap",
        "a plain loop with timm",
        "at most 1e-4",
        "loss_gap",
        lambda gap: gap <= 1e-4,
        quick={"steps": 4},
    ),
    Row(
        "images_per_core",
        "images per core from the cache, photo size",
        "ImageFolder",
        "5x",
        "over_imagefolder",
        lambda ratio: ratio >= 5,
        quick={"images": 64},
    ),
    Row(
        "images_per_core",
        "the same, two runs on the node",
        "ImageFolder, two runs",
        "5x",
        "over_imagefolder_two_runs",
        lambda ratio: ratio >= 5,
        quick={"images": 64},
    ),
    Row(
        "images_per_core",
        "the same, one run",
        "timm's own loader",
        "for comparison",
        "over_timm",
        lambda ratio: True,
        quick={"images": 64},
    ),
    Row(
        "images_per_core",
        "building the cache",
        "an epoch of ImageFolder",
        "for comparison",
        "build_epochs",
        lambda epochs: True,
        quick={"images": 64},
    ),
    Row(
        "images_per_core",
        "images per core, 128 px as they are",
        "ImageFolder",
        "for comparison",
        "over_imagefolder",
        lambda ratio: True,
        arguments={"native": True},
        quick={"images": 64},
    ),
    Row(
        "thousand_runs",
        "events per second, 1,000 runs",
        "",
        "500",
        "events_per_s",
        lambda rate: rate >= 500,
        quick={"runs": 60},
    ),
    Row(
        "thousand_runs",
        "the same, per second of its own CPU time",
        "",
        "500",
        "events_per_cpu_s",
        lambda rate: rate >= 500,
        quick={"runs": 60},
    ),
    Row(
        "thousand_runs",
        "driver's memory at the end",
        "after a tenth of the training",
        "flat",
        "memory_growth",
        lambda growth: growth <= 1.5,
        quick={"runs": 60},
    ),
)


def measured(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The figures of one benchmark, in this process."""
    benchmark = importlib.import_module(f"tests.benchmarks.{module}")
    # A model is a constant of the benchmark, because this file does not import torch.
    arguments = {
        key: getattr(benchmark, value) if key == "model" and value.isupper() else value
        for key, value in arguments.items()
    }
    figures: dict[str, Any] = benchmark.measure(**arguments)
    return figures


def in_new_process(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The figures of one benchmark, in a new process: threads and memory do not affect the next."""
    code = (
        "import json, sys; from tests.benchmarks.__main__ import measured; "
        "print(json.dumps(measured(sys.argv[1], json.loads(sys.argv[2])), default=str))"
    )
    command = [sys.executable, "-c", code, module, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(rows: list[Row], quick: bool, console: Console) -> Table:
    """The table of these rows; a benchmark with several rows runs once."""
    table = Table("what", "against", "aim", "measured", "", title="Speed, as ratios in one run")
    figures: dict[str, dict[str, Any]] = {}
    for row in rows:
        arguments = {**row.arguments, **(row.quick if quick else {})}
        key = f"{row.module} {arguments}"
        if key not in figures:
            with console.status(f"{row.module} {arguments or ''}"):
                figures[key] = in_new_process(row.module, arguments)
        value = float(figures[key][row.figure])
        verdict = "" if quick else "met" if row.is_met(value) else "missed"
        table.add_row(row.what, row.against, row.aim, f"{value:.3g}", verdict)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="modules of tests.benchmarks; default: all")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rows = [
        row
        for row in ROWS
        if importlib.util.find_spec(f"tests.benchmarks.{row.module}")
        and (not arguments.names or row.module in arguments.names)
    ]
    console = Console()
    load = os.getloadavg()[0]
    if load > 1:
        console.print(
            f"this machine is busy (load {load:.1f}); wall-clock figures are not reliable"
        )
    console.print(table(rows, arguments.quick, console))


if __name__ == "__main__":
    main()
