"""What a run brings along to a step: from this worker's memory, or from its checkpoint.

it has trained: warm -> Momentum, cold -> TrainState        it begins, from a base: nothing

A run that is given merged weights brings along all else from where it stood itself.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from workers import snapshot
from workers.blend import blend
from workers.checkpoints import TrainState, load_train_state, open_state
from workers.optim import create_average
from workers.snapshot import Position
from workers.spec import TrainSpec
from workers.types import Checkpoint, Mix, TrainOrder
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
    """None where the run begins, at a base. What the worker has kept is taken from it."""
    kept, worker.momentum = worker.momentum, None
    if not order.own.name.startswith(f"{order.run.id}/"):
        return None
    others = order.rejoin.others if order.rejoin is not None else ()
    if isinstance(kept, Momentum) and kept.id == order.own.id and not others:
        return kept
    state = load_train_state(worker.store, order.own)
    if state is None:
        raise ValueError(f"checkpoint {order.own.id} holds no training state to resume from")
    return _averaged(state, others, worker) if others else state


def _averaged(own: TrainState, others: tuple[Checkpoint, ...], worker: Worker) -> TrainState:
    """With the mean of everyone's optimizer state; the moving average stays the run's own.

    Raises UserError where one's optimizer keeps other tensors than another's.
    """
    with ExitStack() as opened:
        states = {
            each.name: opened.enter_context(open_state(worker.store, each)) for each in others
        }
        sources = {name: snapshot.of_optimizer(state) for name, state in states.items()}
        mean = dict(blend(Mix.mean(list(sources)), sources))
    return replace(own, tensors={**own.tensors, **mean})


def position_at(order: TrainOrder, past: Past | None) -> Position:
    if past is None:
        return Position(step=order.own.step)
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
