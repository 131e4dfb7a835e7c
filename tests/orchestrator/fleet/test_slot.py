"""A slot knows which model its process has in memory, without asking it."""

from typing import Any

from orchestrator.fleet.slot import Slot
from tests.simulator.experiment import simulated
from workers.config.model import ModelConfig
from workers.heartbeat import Heartbeat
from workers.types import AnyOrder, Checkpoint, ErrorClass, Failed, TrainOrder

BASE = Checkpoint.model_construct(name="base/0", step=0)


class SilentActor:
    """Takes orders and sends no events."""

    def __init__(self) -> None:
        self.perform = self

    def remote(self, *_: Any) -> object:
        return object()


def train(model: str) -> TrainOrder:
    run = simulated(1).runs[0].model_copy(update={"id": model, "model": ModelConfig(name=model)})
    return TrainOrder.model_construct(run=run, start=BASE, stop_step=10)


def slot_with(*orders: AnyOrder) -> Slot:
    slot = Slot("slot-0", [SilentActor()], None, starting=[])
    for order in orders:
        slot.submit(order, attempt=1)
    return slot


def fail(slot: Slot, error: ErrorClass) -> None:
    slot.on_event(Failed(order=slot.held[0].order.id, error=error, message="", attempt=1))


def test_a_slot_is_warm_for_the_model_of_its_last_order() -> None:
    slot = slot_with(train("test_vit"))
    assert slot.is_warm_for(train("test_vit")) and not slot.is_warm_for(train("test_resnet"))


def test_a_failure_leaves_no_model_in_memory() -> None:
    errors: list[ErrorClass] = ["diverged", "storage", "corrupt"]
    for error in errors:
        slot = slot_with(train("test_vit"))
        fail(slot, error)
        assert not slot.is_warm_for(train("test_vit"))


def test_a_queued_order_loads_its_model_after_a_failure() -> None:
    slot = slot_with(train("test_vit"), train("test_resnet"))
    fail(slot, "diverged")
    assert slot.is_warm_for(train("test_resnet"))


def test_silent_work_may_take_longer_than_a_heartbeat() -> None:
    slot = slot_with(train("test_vit"))
    assert slot.limit_s == 0.0
    slot.heartbeat = Heartbeat(slot="slot-0", silent_s=300, busy="compiling", limit_s=1800)
    assert slot.limit_s == 1800
