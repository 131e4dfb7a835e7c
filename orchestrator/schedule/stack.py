"""Stacking: which members the stacked classifier has, in which groups.

    with folds      a group is one setting, trained without each fold in turn: together its members
                    have an answer for every training image that none of them has learned from
    without folds   a group is one member, and the classifier is fitted on the selection split

A moving average is a setting of its own.
"""

from collections.abc import Sequence
from typing import Any

from orchestrator.program import Program
from workers.types import Checkpointed, RunSpec, digest, sparse

Single = tuple[RunSpec, Checkpointed]


def groups(program: Program, singles: Sequence[Single]) -> tuple[tuple[RunSpec, ...], ...]:
    """In configured order, a group in order of folds. A setting that lost a run to a failure is
    left out: it has no answer for that fold. Empty when there is nothing to combine."""
    found: dict[Any, list[RunSpec]] = {}
    for track, _ in singles:
        found.setdefault(_setting(track), []).append(track)
    folds = program.experiment.data.folds or 1
    whole = [tuple(group) for group in found.values() if len(group) == folds]
    return tuple(whole) if sum(map(len, whole)) > 1 else ()


def _setting(track: RunSpec) -> tuple[Any, ...]:
    """What members of one group have in common: all but the fold."""
    trained = digest([sparse(track.model), sparse(track.train)], 64)
    return track.role, track.seed, track.replica, trained
