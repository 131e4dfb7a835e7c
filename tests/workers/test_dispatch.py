"""Dispatch: one function per kind of order, and one event per exception."""

import inspect
from typing import get_args

import pytest

from workers.dispatch import INSTANT, ORDER_FUNCTIONS, classify, failed, order_function
from workers.errors import UserError
from workers.storage.store import CorruptFile
from workers.types import AnyOrder, Order

ORDERS: tuple[type[Order], ...] = get_args(AnyOrder)


def test_every_kind_of_order_has_a_function_that_takes_order_attempt_and_worker() -> None:
    kinds = {order.model_fields["kind"].default: order for order in ORDERS}
    assert set(ORDER_FUNCTIONS) == set(kinds) >= INSTANT
    for order in kinds.values():
        function = order_function(order.model_construct())
        names = list(inspect.signature(function).parameters)
        assert names == ["order", "attempt", "worker"], order.__name__
        assert inspect.signature(function).parameters["order"].annotation is order


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("x"), "refused"),
        (CorruptFile("x"), "corrupt"),
        (FloatingPointError("x"), "diverged"),
        (MemoryError(), "oom"),
        (OSError("x"), "storage"),
        (KeyError("x"), "error"),
    ],
)
def test_an_exception_becomes_an_error_class(error: Exception, kind: str) -> None:
    assert classify(error) == kind == failed(error).error
