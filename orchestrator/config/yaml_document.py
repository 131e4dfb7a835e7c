"""YAML documents: strict reading, dotted overrides, and writing that reads back unchanged.

Scalars follow the core rules of YAML 1.2, because those of 1.1 surprise writers of configurations:
here `1e-3` is a number, and `off`, `010` and `2026-01-31` are text.
"""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from workers.errors import UserError

OPEN_TABLES = (("sweep", "space"),)
"""Mappings whose keys are dotted paths: `sweep.space.train.lr=[...]` sets its key `train.lr`."""

MAX_BYTES = 16 << 20
"""Characters of the longest text that is read."""
MAX_VALUES = 1_000_000
"""Most values of a document with all its aliases filled in. Ten lines of aliases of aliases would
otherwise fill the memory."""
MAX_DEPTH = 50
"""Deepest nesting of mappings and lists."""
MAX_DIGITS = 100
"""Longest whole number. Python converts thousands of digits slowly, or not at all."""

_RULES = (
    ("tag:yaml.org,2002:merge", r"<<", "<"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Rules for the tag of a plain scalar, by its first character."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, firsts in _RULES:
        for first in firsts:
            rule = (tag, re.compile(rf"(?:{pattern})\Z"))
            table.setdefault("" if first == "\0" else first, []).append(rule)
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                problem = f"the key {key!r} is there twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > MAX_DIGITS:
            problem = f"a whole number has {len(text):,} digits; write at most {MAX_DIGITS}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    # Text that is no text for a reader of either version is quoted.
    yaml_implicit_resolvers = {
        first: _resolvers().get(first, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
        for first in _resolvers().keys() | yaml.SafeDumper.yaml_implicit_resolvers.keys()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; `source` names the text in errors."""
    value = _value(text, source)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            f"{source}: the content is a {type(value).__name__}; write a mapping, `key: value`"
        )
    return value


def render(value: dict[str, Any]) -> str:
    """YAML text that `parse` reads back as `value`."""
    # Escaped, because PyYAML cannot read back all characters that it writes unescaped.
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)
    return text


def override(document: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of the document with every `dotted.key=value` set; values are YAML."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(
                f"override {assignment!r}: not an assignment; write KEY=VALUE, like train.lr=1e-3"
            )
        document = _with(document, _steps(key), _value(text, f"override {assignment!r}"), key)
    return document


def _value(text: str, source: str) -> Any:
    if len(text) > MAX_BYTES:
        raise UserError(f"{source}: is longer than {MAX_BYTES:,} characters; write less into it")
    try:
        _require_small(text, source)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise UserError(f"{source}{place}: not readable as YAML: {error.problem}") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        # TypeError: a mapping or list is used as a key. ValueError: a date or number that is none.
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{source}: not readable as YAML: {' '.join(str(error).split())}"
        ) from error


def _require_small(text: str, source: str) -> None:
    """Refuse nesting and aliases whose values would be too many, from events, which are flat."""
    sizes: dict[str, int] = {}
    """Number of values below every anchor that is complete."""
    open_nodes: list[tuple[str | None, int]] = []
    """(anchor, number of values before it) of the mappings and lists that are not complete."""
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes and event.anchor in [anchor for anchor, _ in open_nodes]:
                raise UserError(f"{source}: *{event.anchor} contains itself; write it out")
            count += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if len(open_nodes) > MAX_DEPTH:
            raise UserError(f"{source}: nested more than {MAX_DEPTH} deep; write it flatter")
        if count > MAX_VALUES:
            raise UserError(
                f"{source}: has more than {MAX_VALUES:,} values with its aliases; write fewer"
            )


def _steps(key: str) -> list[str]:
    steps = key.split(".")
    for table in OPEN_TABLES:
        if tuple(steps[: len(table)]) == table and len(steps) > len(table):
            return [*table, ".".join(steps[len(table) :])]
    return steps


def _with(document: dict[str, Any], steps: list[str], value: Any, key: str) -> dict[str, Any]:
    first, *rest = steps
    if not rest:
        return {**document, first: value}
    inner = document.get(first)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise UserError(
            f"override {key}: {first} is {inner!r}, which has no keys; set {first} as a whole"
        )
    return {**document, first: _with(inner, rest, value, key)}
