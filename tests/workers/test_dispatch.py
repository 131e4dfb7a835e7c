"""Dispatch: one function per kind of order, and one event per exception."""

import inspect
from importlib import import_module
from typing import get_args

import pytest

from workers.dispatch import IMPORT, INSTANT, ORDER_FUNCTIONS, classify, failed
from workers.errors import UserError
from workers.storage.store import CorruptFile
from workers.types import AnyOrder, Order

ORDERS: tuple[type[Order], ...] = get_args(AnyOrder)


def test_every_kind_of_order_has_a_function_that_takes_order_attempt_and_worker() -> None:
    kinds = {order.model_fields["kind"].default: order for order in ORDERS}
    assert set(ORDER_FUNCTIONS) == set(kinds) >= INSTANT
    for path, kind in [
        *((path, kind) for kind, path in ORDER_FUNCTIONS.items()),
        (IMPORT, "train"),
    ]:
        module, _, function = path.partition(":")
        parameters = inspect.signature(getattr(import_module(module), function)).parameters
        assert list(parameters) == ["order", "attempt", "worker"], path
        assert parameters["order"].annotation is kinds[kind]


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
