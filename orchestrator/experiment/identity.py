"""Identity: whether a configuration is still the experiment that lies in the store.

old config.yaml  --- same identity --->           go on
                 --- only more runs, recipes, ensembles -->  go on with --extend
                 --- anything else --->           refused, with the difference
"""

from typing import Any

from pydantic import ValidationError

from orchestrator.config import Experiment
from orchestrator.experiment.sweep import expand
from workers.errors import UserError

MUTABLE_KEYS = ("storage",)
"""Top-level keys that may change at any restart."""

MUTABLE_FLEET_KEYS = (
    "max_concurrent_runs",
    "max_failures",
    "heartbeat_s",
    "grace_s",
    "env",
    "max_hours",
)
"""Keys of `fleet` that may change at any restart: none has a say in the result."""

MAX_SHOWN = 6
"""Differences that a refusal spells out."""


def identity(experiment: Experiment) -> dict[str, Any]:
    """What must stay the same between restarts, as JSON.

    Defaults are left out, so a later version may add keys and still recognise an old experiment.
    """
    kept = _kept(experiment.model_dump(mode="json", exclude_defaults=True))
    if not kept.get("fleet", True):
        del kept["fleet"]
    return kept


def check(old: dict[str, Any], new: Experiment, extend: bool = False) -> None:
    """Nothing when `new` is the experiment whose identity is `old`, or an allowed extension of it.

    An extension changes nothing but the sweep, the recipes and the ensembles, and still contains
    every old run, recipe and ensemble: new recipes mix what is there, and retrain nothing. Raises
    UserError with the difference, and with `--extend` or `--name` as the way out.
    """
    if old == identity(new):
        return
    before = _restored(old, new)
    changes = differences(before, new)
    if not changes:
        return
    extends = _extends(before, new)
    if extends and extend:
        return
    shown = "; ".join(changes[:MAX_SHOWN])
    more = f"; and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
    remedy = (
        "pass --extend to add this to it, or --name OTHER to start another"
        if extends
        else "undo the change, or pass --name OTHER to start another"
    )
    raise UserError(f"experiment {new.name} has begun with another config: {shown}{more}; {remedy}")


def differences(old: Experiment, new: Experiment) -> list[str]:
    """`dotted.path: old -> new` for all that may not change silently."""
    before, after = (_leaves(_kept(one.model_dump(mode="json"))) for one in (old, new))
    paths = list(before) + [path for path in after if path not in before]
    absent = "absent"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in paths
        if before.get(path, absent) != after.get(path, absent)
    ]


def _kept(tree: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in tree.items() if key not in MUTABLE_KEYS}
    if "fleet" in kept:
        fleet = kept["fleet"].items()
        kept["fleet"] = {key: value for key, value in fleet if key not in MUTABLE_FLEET_KEYS}
    return kept


def _restored(old: dict[str, Any], new: Experiment) -> Experiment:
    try:
        return Experiment.model_validate(old)
    except ValidationError as error:
        raise UserError(
            f"experiment {new.name} was begun by a version of soupfleet whose config this one does "
            "not understand; continue with that version, or pass --name OTHER to start another"
        ) from error


def _extends(old: Experiment, new: Experiment) -> bool:
    soup = new.soup.model_copy(update={"recipes": old.soup.recipes})
    may_grow = {"sweep": old.sweep, "soup": soup, "ensemble": old.ensemble}
    if differences(old, new.model_copy(update=may_grow)):
        return False
    if any(new.ensemble.model_dump()[kind] < on for kind, on in old.ensemble.model_dump().items()):
        return False
    # By label, so that a soup that was made keeps its name.
    asked = dict(zip(new.soup.labels, new.soup.recipes, strict=True))
    if any(
        asked.get(label) != r for label, r in zip(old.soup.labels, old.soup.recipes, strict=True)
    ):
        return False
    before, after = ({run.id for run in expand(one)} for one in (old, new))
    # Runs that are merged as they train would have become others with one more among them.
    return before == after if new.merge.mode == "sync" else before <= after


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
