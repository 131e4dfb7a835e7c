"""The layout of an experiment in its store. Every path is defined here."""

import re

CONFIG = "config.yaml"
ENV = "env.json"
LEASE = "driver.json"
LEDGER = "ledger"
SPLITS = "splits.parquet"
RESULTS = "results.json"
ANALYSIS = "analysis.json"
SUMMARY = "summary.csv"
REPORT = "report.html"
SERVED = "soup"
FINISH = "finish"
"""A marker that `soupfleet finish` writes and the driver reads."""
STAGED = "staged"
"""Folder of files that workers wrote and the driver has not published yet."""
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"

FOLDERS = ("base", "runs", "soups", "ensembles", "predictions", STAGED)
STORE_ENTRIES = frozenset(
    [
        *(CONFIG, ENV, LEASE, LEDGER, SPLITS, RESULTS, ANALYSIS, SUMMARY, REPORT, SERVED, FINISH),
        *FOLDERS,
    ]
)
"""All files and folders at the top of an experiment."""

PROBE = ".probe-"
"""Beginning of the names of markers that test whether a store can be written to."""


def staged_path(order: str, attempt: int, name: str) -> str:
    """Where an attempt of an order leaves a file that the driver publishes under `name`."""
    return f"{STAGED}/{order}-{attempt}/{name}"


def checkpoint_dir(checkpoint_id: str) -> str:
    """Folder of a checkpoint: `base/<hash>`, `soup/<id>` or `<run>/<step>-<attempt>`."""
    owner, _, rest = checkpoint_id.partition("/")
    if not owner or not rest:
        raise ValueError(f"{checkpoint_id!r} is not the id of a checkpoint")
    if owner == "base":
        return checkpoint_id
    if owner == "soup":
        return f"soups/{rest}"
    return f"runs/{owner}/checkpoints/{rest}"


def checkpoint_of(text: str) -> str | None:
    """Id of the run's checkpoint or soup whose file a message names. None: it names none."""
    match = re.search(r"runs/([^/\s]+)/checkpoints/([^/\s]+)/|soups/([^/\s]+)/", text)
    if match is None:
        return None
    run, checkpoint, soup = match.groups()
    return f"soup/{soup}" if soup else f"{run}/{checkpoint}"


def made_file_of(text: str) -> str | None:
    """Path of the file that a message begins with, if orders can make it again. None: there is
    none."""
    folders = "base|predictions|ensembles"
    match = re.match(rf"({re.escape(SPLITS)}|{re.escape(ANALYSIS)}|(?:{folders})/\S+) in ", text)
    return match.group(1) if match is not None else None


def predictions_dir(checkpoint_id: str) -> str:
    """Folder of a checkpoint's cached predictions."""
    return f"predictions/{checkpoint_id.replace('/', '_')}"


def predictions_path(checkpoint_id: str, split: str) -> str:
    """File of a checkpoint's cached predictions on a split."""
    return f"{predictions_dir(checkpoint_id)}/{split.replace(':', '_')}.parquet"


def outcomes_path(checkpoint_id: str, split: str) -> str:
    """File of what these predictions mean for each image."""
    return f"{predictions_path(checkpoint_id, split).removesuffix('.parquet')}.outcomes.parquet"


def run_file(run: str, *parts: str) -> str:
    """A file of a run, e.g. `run_file(run, "logs", "attempt-1.log")`."""
    return "/".join(("runs", run, *parts))


def ensemble_dir(ensemble_id: str) -> str:
    """Folder of a saved ensemble."""
    return f"ensembles/{ensemble_id}"
