"""Remembering the last answer of a pure function of frozen values.

The rules ask one state the same things many times in a turn. Comparing states by value would cost
more than the answers do, so what an answer depends on is told apart by identity.
"""

from collections.abc import Callable
from functools import wraps
from operator import is_
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def remembered(by: Callable[P, tuple[Any, ...]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Answer again what was answered last while all objects in `by(arguments)` are the same.

    `by` must name everything that the answer depends on. One answer is kept, and its objects with
    it, so memory stays flat and no identity is ever reused.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        last: list[tuple[tuple[Any, ...], R]] = []

        @wraps(function)
        def answer(*args: P.args, **kwargs: P.kwargs) -> R:
            key = by(*args, **kwargs)
            if not last or not all(map(is_, last[0][0], key)):
                last[:] = [(key, function(*args, **kwargs))]
            return last[0][1]

        return answer

    return decorate
