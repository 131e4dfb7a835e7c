"""Remembering: the same objects are answered once, equal ones anew."""

from orchestrator.state.remember import remembered


def test_the_same_objects_are_answered_once() -> None:
    asked = []

    @remembered(by=lambda values: (values,))
    def total(values: list[int]) -> int:
        asked.append(values)
        return sum(values)

    first, equal = [1, 2], [1, 2]
    assert [total(first), total(first), total(equal), total(first)] == [3, 3, 3, 3]
    assert [each is first for each in asked] == [True, False, True]


def test_what_the_answer_does_not_depend_on_may_change() -> None:
    asked = 0

    @remembered(by=lambda left, right: (left,))
    def same(left: object, right: object) -> object:
        nonlocal asked
        asked += 1
        return left

    thing = object()
    assert same(thing, 1) is same(thing, 2) is thing
    assert asked == 1
