"""What a run brings along to a step: from this worker's memory, or from its checkpoint.

start is the run's own: warm -> Momentum, cold -> TrainState        start is a base or soup: nothing
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from workers import snapshot
from workers.checkpoints import TrainState, load_train_state
from workers.optim import create_average
from workers.snapshot import Position
from workers.spec import TrainSpec
from workers.types import TrainOrder
from workers.worker import Worker


@dataclass
class Momentum:
    """What a worker keeps beside the weights of the checkpoint `id`, to go on without loading."""

    id: str
    optimizer: Optimizer
    position: Position
    scaler: dict[str, Any] | None
    average: Any
    """timm's moving average, on rank 0 of a run that keeps one."""


Past = Momentum | TrainState


def past_of(order: TrainOrder, worker: Worker) -> Past | None:
    """None where the run begins, or was given other weights: those of a soup. What the worker has
    kept is taken from it."""
    kept, worker.momentum = worker.momentum, None
    if not order.start.name.startswith(f"{order.run.id}/"):
        return None
    if isinstance(kept, Momentum) and kept.id == order.start.id:
        return kept
    state = load_train_state(worker.store, order.start)
    if state is None:
        raise ValueError(f"checkpoint {order.start.id} holds no training state to resume from")
    return state


def position_at(order: TrainOrder, past: Past | None) -> Position:
    if past is None:
        return Position(step=order.start.step)
    return past.position if isinstance(past, Momentum) else snapshot.position_of(past)


def average_at(net: nn.Module, spec: TrainSpec, past: Past | None) -> Any:
    """The moving average as it was; a new one, equal to the network, where there is no past."""
    if isinstance(past, Momentum):
        return past.average
    average = create_average(net, spec)
    if average is not None and past is not None:
        snapshot.give_back_average(past, average.module)
    return average


def scaler_of(past: Past | None) -> dict[str, Any] | None:
    """Of the loss, where training runs in float16."""
    if past is None:
        return None
    scaler: dict[str, Any] | None = (
        past.scaler if isinstance(past, Momentum) else past.scalars["scaler"]
    )
    return scaler
