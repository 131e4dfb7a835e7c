"""Paths of a configuration: `~` and `${NAME}` filled in, inputs made absolute.

    storage, data.root, model.checkpoint, train.weights, and what a sweep sets these two to

Inputs become absolute because workers start in other folders.
"""

import os
import re
from typing import Any

from workers.errors import UserError

FILES = ("model.checkpoint", "train.weights")
"""The paths that a sweep can vary."""

Tree = dict[str, Any]


def resolved(tree: Tree, source: str) -> Tree:
    """The document of a configuration with its paths filled in; what is malformed stays as it is.

    Raises UserError for an environment variable that is not set.
    """
    tree = _within(tree, ["storage"], "storage", source, absolute=False)
    for dotted in ("data.root", *FILES):
        tree = _within(tree, dotted.split("."), dotted, source)
    sweep = tree.get("sweep")
    return {**tree, "sweep": _of_sweep(sweep, source)} if isinstance(sweep, dict) else tree


def _of_sweep(sweep: Tree, source: str) -> Tree:
    """Files as values of an axis, and in explicit runs, written dotted or nested."""
    space, runs = sweep.get("space"), sweep.get("runs")
    if isinstance(space, dict):
        axes = {
            file: _of_axis(space[file], f"sweep.space.{file}", source)
            for file in FILES
            if file in space
        }
        sweep = {**sweep, "space": {**space, **axes}}
    if isinstance(runs, list):
        sweep = {**sweep, "runs": [_of_run(run, i, source) for i, run in enumerate(runs)]}
    return sweep


def _of_axis(axis: Any, dotted: str, source: str) -> Any:
    if isinstance(axis, list):
        return [_filled(value, dotted, source) for value in axis]
    if isinstance(axis, dict) and isinstance(axis.get("choice"), list):
        return {**axis, "choice": _of_axis(axis["choice"], dotted, source)}
    return axis


def _of_run(run: Any, number: int, source: str) -> Any:
    if not isinstance(run, dict):
        return run
    for file in FILES:
        for steps in ([file], file.split(".")):
            run = _within(run, steps, f"sweep.runs.{number}.{file}", source)
    return run


def _within(tree: Tree, steps: list[str], dotted: str, source: str, absolute: bool = True) -> Tree:
    """A copy of the tree with the path at `steps` filled in, if there is one."""
    first, *rest = steps
    value = tree.get(first)
    if not rest:
        return {**tree, first: _filled(value, dotted, source, absolute)} if value else tree
    if not isinstance(value, dict):
        return tree
    return {**tree, first: _within(value, rest, dotted, source, absolute)}


def _filled(value: Any, dotted: str, source: str, absolute: bool = True) -> Any:
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
    if "://" in path:
        return path
    path = os.path.expanduser(path)
    return os.path.abspath(path) if absolute else path
