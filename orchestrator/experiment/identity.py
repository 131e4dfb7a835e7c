"""Identity: whether a configuration is still the experiment in the store.

    command + stored config.yaml -- same identity ----------------------> continue
                                 -- lacks what --extend added ----------> continue, name it
                                 -- only more runs, recipes, ensembles -> continue with --extend
                                 -- anything else ----------------------> refuse, list the changes

A key that the command does not name keeps its stored value, so a default that changes with a new
version changes no experiment that has begun.
"""

from typing import Any

from pydantic import ValidationError

from orchestrator.config import Experiment, secrets
from orchestrator.config.sections import FleetConfig, RecipeConfig
from orchestrator.experiment.sweep import expand
from workers.config import Section
from workers.errors import UserError

MUTABLE_KEYS = ("storage",)
"""Top-level keys that may change at any restart."""

MUTABLE_FLEET_KEYS = frozenset(
    [
        *("max_concurrent_runs", "max_failures", "heartbeat_s", "grace_s", "env", "max_hours"),
        "storage_patience",
    ]
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
    because its keys only make sense together. A key that affects no result has its present default
    if its first one was stored.
    """
    tree = _overlay(stored, new)
    tree["storage"] = new.storage
    for key in _outdated_defaults(stored.fleet) - new.fleet.model_fields_set:
        del tree["fleet"][key]
    if tree.get("sweep") != stored.sweep.model_dump(mode="json", exclude_unset=True):
        tree["sweep"] = new.sweep.model_dump(mode="json", exclude_unset=True)
    try:
        return Experiment.model_validate(tree)
    except ValidationError:
        return new  # a named key contradicts a stored one; `check` shows the change


def with_extensions(
    new: Experiment, stored: Experiment, original: dict[str, Any] | None
) -> Experiment:
    """`new`, but with the runs, recipes and ensembles that `stored` gained since it began.

    `original` is its identity before the first extension; what was there from the beginning is not
    added to `new`. None: it was not extended.
    """
    if original is None:
        return new
    first = _restored(original, new)
    soup = new.soup.model_copy(update={"recipes": _all_recipes(new, stored, first)})
    ensemble = new.ensemble.model_copy(update=_all_ensembles(new, stored, first))
    sweep = stored.sweep if _lacks_runs(new, stored, first) else new.sweep
    return new.model_copy(update={"sweep": sweep, "soup": soup, "ensemble": ensemble})


def grown_like(experiment: Experiment, other: Experiment) -> Experiment:
    """The experiment with the runs, recipes and ensembles of another."""
    soup = experiment.soup.model_copy(update={"recipes": other.soup.recipes})
    grown = {"sweep": other.sweep, "soup": soup, "ensemble": other.ensemble}
    return experiment.model_copy(update=grown)


def _lacks_runs(new: Experiment, stored: Experiment, first: Experiment) -> bool:
    """Whether the sweep of `new` lacks only runs that were added, whatever else differs."""
    runs = _run_ids(stored.model_copy(update={"sweep": new.sweep}))
    return _run_ids(first) <= runs < _run_ids(stored)


def _all_recipes(
    new: Experiment, stored: Experiment, first: Experiment
) -> tuple[RecipeConfig, ...]:
    """Stored recipes that were not there at first, among those of `new`; stored ones keep their
    places, and so their labels."""
    wanted = [*new.soup.recipes]
    gained = [one for one in stored.soup.recipes if one not in (*wanted, *first.soup.recipes)]
    if not gained:
        return new.soup.recipes
    old = [one for one in stored.soup.recipes if one in (*wanted, *gained)]
    return (*old, *(one for one in wanted if one not in old))


def _all_ensembles(new: Experiment, stored: Experiment, first: Experiment) -> dict[str, bool]:
    before = first.ensemble.model_dump()
    wanted = new.ensemble.model_dump()
    return {
        kind: True
        for kind, is_on in stored.ensemble.model_dump().items()
        if is_on and not before[kind] and not wanted[kind]
    }


def _run_ids(experiment: Experiment) -> set[str]:
    return {run.id for run in expand(experiment)}


def additions(before: Experiment, after: Experiment) -> tuple[str, ...]:
    """What `after` has more than `before`, as text: recipes, runs, ensembles."""
    recipes = [one for one in after.soup.labels if one not in before.soup.labels]
    ensembles = [
        kind
        for kind, is_on in after.ensemble.model_dump().items()
        if is_on and not before.ensemble.model_dump()[kind]
    ]
    return (
        *(f"recipe `{label}`" for label in recipes),
        *_more_runs(added_runs(before, after)),
        *(f"ensemble.{kind}" for kind in ensembles),
    )


def _more_runs(count: int) -> tuple[str, ...]:
    return (f"{count} more run{'s' if count > 1 else ''}",) if count else ()


def added_runs(before: Experiment, after: Experiment) -> int:
    """Number of runs that `after` has and `before` has not."""
    return len(_run_ids(after) - _run_ids(before))


def _outdated_defaults(stored: FleetConfig) -> set[str]:
    return {
        key
        for key, value in FleetConfig.first_defaults.items()
        if key in MUTABLE_FLEET_KEYS & stored.model_fields_set and getattr(stored, key) == value
    }


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
    if config_differences(old, grown_like(new, old)):
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
    before, after = _run_ids(old), _run_ids(new)
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
