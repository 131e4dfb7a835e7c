"""Performing: who does what is ordered."""

from collections import Counter
from importlib import import_module
from typing import get_args

import pytest

from workers.performing import PERFORMERS
from workers.types import AnyOrder

NO_ORDER = {"adopt"}
"""A train order for weights from elsewhere: no kind of its own."""


def test_every_kind_of_order_has_exactly_one_performer() -> None:
    kinds = Counter(order.model_fields["kind"].default for order in get_args(AnyOrder))
    assert set(kinds.values()) == {1}, "a kind tells orders apart"
    assert PERFORMERS.keys() - NO_ORDER == kinds.keys()
    assert len(set(PERFORMERS.values())) == len(PERFORMERS), "nobody performs two"


@pytest.mark.parametrize("place", PERFORMERS.values())
def test_a_performer_is_where_the_table_says(place: str) -> None:
    module, _, function = place.partition(":")
    assert callable(getattr(import_module(module), function))
