"""Paths in a configuration: `~` and `${NAME}` are filled in, inputs become absolute.

    storage, data.root, model.checkpoint, train.weights, and the values of the last two in a sweep

Inputs become absolute because workers run in other folders.
"""

import os
import re
from typing import Any

from workers.errors import UserError
from workers.storage import local_disk

FILES = ("model.checkpoint", "train.weights")
"""Keys of paths that a sweep can vary."""

Tree = dict[str, Any]


def resolved(tree: Tree, source: str) -> Tree:
    """The document of a configuration with its paths filled in. Malformed parts stay as they are.

    Raises:
        UserError: an environment variable is not set.
    """
    tree = _resolve_key(tree, ["storage"], "storage", source, absolute=False)
    for dotted in ("data.root", *FILES):
        tree = _resolve_key(tree, dotted.split("."), dotted, source)
    sweep = tree.get("sweep")
    return {**tree, "sweep": _resolve_sweep(sweep, source)} if isinstance(sweep, dict) else tree


def _resolve_sweep(sweep: Tree, source: str) -> Tree:
    """The sweep with the files in its axes and explicit runs, dotted or nested, filled in."""
    space, runs = sweep.get("space"), sweep.get("runs")
    if isinstance(space, dict):
        axes = {
            file: _resolve_axis(space[file], f"sweep.space.{file}", source)
            for file in FILES
            if file in space
        }
        sweep = {**sweep, "space": {**space, **axes}}
    if isinstance(runs, list):
        sweep = {**sweep, "runs": [_resolve_run(run, i, source) for i, run in enumerate(runs)]}
    return sweep


def _resolve_axis(axis: Any, dotted: str, source: str) -> Any:
    if isinstance(axis, list):
        return [_resolve_path(value, dotted, source) for value in axis]
    if isinstance(axis, dict) and isinstance(axis.get("choice"), list):
        return {**axis, "choice": _resolve_axis(axis["choice"], dotted, source)}
    return axis


def _resolve_run(run: Any, number: int, source: str) -> Any:
    if not isinstance(run, dict):
        return run
    for file in FILES:
        for steps in ([file], file.split(".")):
            run = _resolve_key(run, steps, f"sweep.runs.{number}.{file}", source)
    return run


def _resolve_key(
    tree: Tree, steps: list[str], dotted: str, source: str, absolute: bool = True
) -> Tree:
    """A copy of the tree with the path at `steps` filled in, if that key exists."""
    first, *rest = steps
    value = tree.get(first)
    if not rest:
        return {**tree, first: _resolve_path(value, dotted, source, absolute)} if value else tree
    if not isinstance(value, dict):
        return tree
    return {**tree, first: _resolve_key(value, rest, dotted, source, absolute)}


def _resolve_path(value: Any, dotted: str, source: str, absolute: bool = True) -> Any:
    def variable(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise UserError(
                f"{source}: {dotted} is {value!r}, but the environment variable {name} is not set; "
                f"set it, or pass {dotted}=PATH"
            )
        return os.environ[name]

    if not isinstance(value, str):
        return value
    path = re.sub(r"\$\{(\w+)\}", variable, value)
    if "\0" in path:
        raise UserError(f"{source}: {dotted} is {value!r}; a path has no zero byte")
    if "://" in path:
        return path
    path = str(local_disk.expanded(path))
    return os.path.abspath(path) if absolute else path
