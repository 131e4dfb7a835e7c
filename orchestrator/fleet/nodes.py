"""Nodes on which slots fail to start: each is excluded for a while, and the others work on.

start failed --> count of its node --3--> excluded for 1, 2, 4, .. up to 60 minutes, as an event
start worked --> count 0
"""

import time
from collections import Counter
from collections.abc import Iterable

from workers.types import NodeExcluded

MAX_START_FAILURES = 3
"""Slots in a row that may fail to start on a node before it is excluded."""

FIRST_EXCLUSION_S = 60.0
LONGEST_EXCLUSION_S = 3600.0

UNKNOWN_NODE = "unknown"
"""Stands for the node of a process that was never placed."""


class Nodes:
    """Start failures by node, and the nodes that are excluded now."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        """By node: slots in a row that failed to start."""
        self._exclusions: Counter[str] = Counter()
        """By node: how often it was excluded since a slot last started there."""
        self._until: dict[str, float] = {}
        """By node: monotonic time when it may be used again."""

    @property
    def excluded(self) -> frozenset[str]:
        now = time.monotonic()
        return frozenset(node for node, until in self._until.items() if until > now)

    def note_start(self, nodes: Iterable[str]) -> None:
        """A slot has started on these nodes."""
        for node in nodes:
            del self._failures[node], self._exclusions[node]

    def note_failure(self, nodes: Iterable[str], reason: str) -> list[NodeExcluded]:
        """A slot failed to start on these nodes, all alive. Returns those excluded for it."""
        events = []
        for node in nodes or [UNKNOWN_NODE]:
            self._failures[node] += 1
            if self._failures[node] >= MAX_START_FAILURES:
                events.append(self._exclude(node, reason))
        return events

    def _exclude(self, node: str, reason: str) -> NodeExcluded:
        for_s = min(FIRST_EXCLUSION_S * 2 ** min(self._exclusions[node], 16), LONGEST_EXCLUSION_S)
        self._exclusions[node] += 1
        self._failures[node] = 0
        self._until[node] = time.monotonic() + for_s
        return NodeExcluded(node=node, for_s=for_s, reason=reason)
