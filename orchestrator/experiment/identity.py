"""Identity: whether a configuration is still the experiment in the store.

    command + stored config.yaml -- same identity ----------------------> continue
                                 -- only more runs, recipes, ensembles -> continue with --extend
                                 -- anything else ----------------------> refuse, list the changes

A key that the command does not name keeps its stored value, so a default that changes with a new
version changes no experiment that has begun.
"""

from typing import Any

from pydantic import ValidationError

from orchestrator.config import Experiment, secrets
from orchestrator.config.sections import RecipeConfig
from orchestrator.experiment.sweep import expand
from workers.config import Section
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
"""Keys of `fleet` that may change at any restart, because they do not affect the result."""

MAX_SHOWN = 6
"""Differences that a refusal lists."""


def identity(experiment: Experiment) -> dict[str, Any]:
    """The part of a configuration that must stay the same between restarts, as JSON.

    Defaults are left out, so a later version may add keys and still recognise an old experiment.
    """
    tree = _without_mutable_keys(
        secrets.public(experiment.model_dump(mode="json", exclude_defaults=True))
    )
    if not tree.get("fleet", True):
        del tree["fleet"]
    return tree


def with_stored_values(new: Experiment, stored: Experiment) -> Experiment:
    """`new`, but with the stored value of every key that neither its file nor an override names.

    A key that an older version did not store has its default. `storage` is always that of `new`,
    because the experiment was found there. A `sweep` that names anything new is taken as a whole,
    because its keys only make sense together.
    """
    tree = _overlay(stored, new)
    tree["storage"] = new.storage
    if tree.get("sweep") != stored.sweep.model_dump(mode="json", exclude_unset=True):
        tree["sweep"] = new.sweep.model_dump(mode="json", exclude_unset=True)
    try:
        return Experiment.model_validate(tree)
    except ValidationError:
        return new  # a named key contradicts a stored one; `check` shows the change


def kept_values(new: Experiment, merged: Experiment) -> list[str]:
    """`dotted.path: value (default: value)` of the keys that keep a stored value in `merged`."""
    defaults, values = (
        _leaves(secrets.public(one.model_dump(mode="json"))) for one in (new, merged)
    )
    return [
        f"{path}: {value} (default: {defaults.get(path, 'absent')})"
        for path, value in values.items()
        if path not in defaults or defaults[path] != value
    ]


def check(old: dict[str, Any], new: Experiment, extend: bool = False) -> None:
    """Pass if `new` is the experiment whose identity is `old`, or an allowed extension of it.

    An extension changes only the sweep, the recipes and the ensembles, and still contains every old
    run, recipe and ensemble. New recipes mix existing checkpoints; nothing is trained again.

    Raises:
        UserError: anything else changed; with the difference, and `--extend` or `--name` as remedy.
    """
    if old == identity(new):
        return
    before = _restored(old, new)
    changes = config_differences(before, new)
    if not changes:
        return
    is_extension = _is_extension(before, new)
    if is_extension and extend:
        return
    shown = "; ".join(changes[:MAX_SHOWN])
    more = f"; and {len(changes) - MAX_SHOWN} more" if len(changes) > MAX_SHOWN else ""
    remedy = (
        "pass --extend to add this to it, or --name OTHER to start another"
        if is_extension
        else "undo the change, or pass --name OTHER to start another"
    )
    raise UserError(f"experiment {new.name} began with another config: {shown}{more}; {remedy}")


def config_differences(old: Experiment, new: Experiment) -> list[str]:
    """`dotted.path: old -> new` of every difference in what must stay the same."""
    before, after = (
        _leaves(_without_mutable_keys(secrets.public(one.model_dump(mode="json"))))
        for one in (old, new)
    )
    paths = list(before) + [path for path in after if path not in before]
    absent = "absent"
    return [
        f"{path}: {before.get(path, absent)} -> {after.get(path, absent)}"
        for path in paths
        if before.get(path, absent) != after.get(path, absent)
    ]


def _overlay(old: Section, new: Section) -> dict[str, Any]:
    """The keys that are set in either section, as JSON; `new` wins. A recipe is one value."""
    tree = old.model_dump(mode="json", exclude_unset=True)
    for key, value in new.model_dump(mode="json", exclude_unset=True).items():
        before, after = getattr(old, key), getattr(new, key)
        is_section = isinstance(after, Section) and not isinstance(after, RecipeConfig)
        is_mergeable = is_section and type(before) is type(after)
        tree[key] = _overlay(before, after) if is_mergeable else value
    return tree


def _without_mutable_keys(tree: dict[str, Any]) -> dict[str, Any]:
    fixed = {key: value for key, value in tree.items() if key not in MUTABLE_KEYS}
    if "fleet" in fixed:
        fleet = fixed["fleet"].items()
        fixed["fleet"] = {key: value for key, value in fleet if key not in MUTABLE_FLEET_KEYS}
    return fixed


def _restored(old: dict[str, Any], new: Experiment) -> Experiment:
    try:
        return Experiment.model_validate(old)
    except ValidationError as error:
        raise UserError(
            f"experiment {new.name} began with a version of soupfleet whose config this version "
            "cannot read; continue with that version, or pass --name OTHER to start another"
        ) from error


def _is_extension(old: Experiment, new: Experiment) -> bool:
    soup = new.soup.model_copy(update={"recipes": old.soup.recipes})
    may_grow = {"sweep": old.sweep, "soup": soup, "ensemble": old.ensemble}
    if config_differences(old, new.model_copy(update=may_grow)):
        return False
    if any(new.ensemble.model_dump()[kind] < on for kind, on in old.ensemble.model_dump().items()):
        return False
    # Compared by label, so that an existing soup keeps its name.
    recipes = dict(zip(new.soup.labels, new.soup.recipes, strict=True))
    if any(
        recipes.get(label) != recipe
        for label, recipe in zip(old.soup.labels, old.soup.recipes, strict=True)
    ):
        return False
    before, after = ({run.id for run in expand(one)} for one in (old, new))
    # With sync rounds, one more run would have changed the weights of the others.
    return before == after if new.merge.mode == "sync" else before <= after


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
