"""Text from data on its way out of the program: one function per medium.

File names, class names, keys of shards and settings may have been written by a stranger. They must
not steer a terminal, turn the direction of a line, become markup or be evaluated by a spreadsheet.

    terminal, log, HTML    printable, one_line     control characters become visible escapes
    values of a page       printable_values        the same in all strings of nested values
    Markdown               markdown                and no tag, link or column of a table
    CSV                    csv_cell                and no formula
    all of them            without_credentials, shortened
"""

import re
from typing import Any

_LINES = "\t\n"
"""Control characters that a text of several lines needs."""
_CONTROLS = (
    "\x00-\x1f\x7f-\x9f"  # C0 and C1, with ESC
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of direction
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff"  # bytes of a file name that are not UTF-8
)
_CONTROL = re.compile(f"[{_CONTROLS}]")
_MARKUP = str.maketrans({"<": "&lt;", ">": "&gt;", "|": r"\|", "`": r"\`", "[": r"\[", "]": r"\]"})
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a cell that spreadsheets evaluate, and their full-width forms."""
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s'\"]*@")
_SECRET_PARAMETER = re.compile(
    r"([?&])(?:[\w.-]*(?:access_?key|secret|token|password|passwd|signature|credential|api_?key"
    r"|sig)[\w.-]*)=[^&#\s'\"]*(&?)",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """The text with control characters other than tab and line feed as escapes like `\\x1b`."""
    return _CONTROL.sub(lambda m: m[0] if m[0] in _LINES else _escape(m[0]), text)


def one_line(text: str) -> str:
    """The text with all control characters as escapes, so that it stays on its line."""
    return _CONTROL.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def printable_values(value: Any) -> Any:
    """The nested value with `printable` applied to all its strings, except to keys."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: printable_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_values(inner) for inner in value]
    return value


def markdown(name: str) -> str:
    """A name as plain text in Markdown, also in a cell of a table."""
    return one_line(name).translate(_MARKUP)


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV file. A formula gets an apostrophe, by which spreadsheets know
    text; a number stays as it is."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    is_formula = text.startswith(_FORMULA) and _NUMBER.fullmatch(text) is None
    return f"'{text}" if is_formula else text


def without_credentials(text: str) -> str:
    """The text without users, passwords, keys and tokens in the URIs that it contains."""
    if "://" not in text:
        return text
    while (shorter := _SECRET_PARAMETER.sub(_cut_parameter, text)) != text:
        text = shorter
    return _USER.sub(r"\1", text)


def _cut_parameter(match: re.Match[str]) -> str:
    """What stays of `?key=value&`: the separator, if another parameter follows."""
    return match[1] if match[2] else ""


def shortened(text: str, length: int = 2000) -> str:
    """The text, with its middle left out if it is longer. Its end, often a remedy, stays."""
    if len(text) <= length:
        return text
    head = 2 * length // 3
    return f"{text[:head]} ... ({len(text):,} characters) ... {text[head - length :]}"
