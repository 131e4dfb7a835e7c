"""Errors that a user can correct, and the parts that all error texts share."""

import difflib
from collections.abc import Iterable

from workers.text import shortened, without_credentials

SIMILARITY = 0.4
"""Least similarity (difflib, 0..1) of a name that is worth suggesting."""


class UserError(ValueError):
    """A mistake that the user can correct: one sentence of what, where, value seen and remedy.

    Long values are cut in it, and credentials of URIs are left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(shortened(message)))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def similar_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three similar names, the most similar first. Upper and lower case count as equal."""
    originals = {candidate.lower(): candidate for candidate in names}
    similar = difflib.get_close_matches(name.lower(), originals, n=3, cutoff=SIMILARITY)
    return [originals[candidate] for candidate in similar]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question with up to three similar names; empty if none is similar."""
    similar = similar_names(name, names)
    return f"did you mean {' or '.join(similar)}?" if similar else ""
