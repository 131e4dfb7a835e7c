"""Secrets of a configuration, which never reach the store.

fleet.env    the store holds `${NAME}` for every value; workers get the value from the command's
             configuration, or from its environment
URIs         the store holds them without users, passwords, keys and tokens
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from workers.errors import UserError
from workers.text import without_credentials

_REFERENCE = re.compile(r"\$\{(\w+)\}")


def public(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a configuration without its secrets."""
    hidden: dict[str, Any] = _public_values(tree)
    fleet = hidden.get("fleet")
    if isinstance(fleet, dict) and isinstance(fleet.get("env"), dict):
        hidden["fleet"] = {**fleet, "env": _references(fleet["env"])}
    return hidden


def _public_values(value: Any) -> Any:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return {key: _public_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public_values(inner) for inner in value]
    return value


def _references(env: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if _REFERENCE.fullmatch(str(value)) else f"${{{name}}}"
        for name, value in env.items()
    }


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """`fleet.env` with the values of its references, from the environment of this process.

    Raises:
        UserError: a variable that is referred to is not set.
    """
    return {name: _value(name, value) for name, value in env.items()}


def _value(name: str, value: str) -> str:
    match = _REFERENCE.fullmatch(value)
    if match is None:
        return value
    if match[1] not in os.environ:
        raise UserError(
            f"fleet.env.{name} is {value}, but the environment variable {match[1]} is not set; set "
            f"it, or pass fleet.env.{name}=VALUE"
        )
    return os.environ[match[1]]


def public_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without values of `fleet.env` and credentials of URIs."""
    return [_public_argument(argument) for argument in arguments]


def _public_argument(argument: str) -> str:
    key, equals, _ = argument.partition("=")
    if equals and (key in ("fleet", "fleet.env") or key.startswith("fleet.env.")):
        return f"{key}=..."
    return without_credentials(argument)
