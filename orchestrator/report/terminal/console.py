"""The console that all tables and lines are printed with."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from workers.text import printable

PIPE_WIDTH = 130
"""Columns of tables in a pipe or log, which has no width."""


class SafeConsole(Console):
    """A console on which names from data cannot steer the terminal: rich's own escapes pass, those
    in text become visible."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)


def console(**settings: Any) -> SafeConsole:
    """A console on stdout as wide as the terminal, or PIPE_WIDTH in a pipe or log."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return SafeConsole(**{"width": width, **settings})
