"""Restoring a run: what the network is when an order begins, and optimizer, position and moving
average, from this worker's memory or from the checkpoint."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from workers.config.train import TrainSpec
from workers.context import WorkerContext
from workers.merging.blend import blend
from workers.models.pretrained import assign_weights
from workers.storage.checkpoints import TrainState, load_train_state, open_state, open_weights
from workers.training import train_state
from workers.training.loop import Training, set_rates
from workers.training.optim import body_lr, create_average
from workers.training.train_state import Position
from workers.types import Checkpoint, Mix, TrainOrder


def network(order: TrainOrder, worker: WorkerContext) -> nn.Module:
    """The warm network with the start's weights; nothing is loaded if it already is the start.

    What the worker keeps of the run's training stays, though its network may have tasted soups or
    been given merged weights since.
    """
    net = worker.model(order.run.model, order.run.train.drop_path)
    start = order.own if order.pulls else order.start
    if worker.memory_is != start.id:
        worker.memory_is = None
        with open_weights(worker.store, start) as weights:
            assign_weights(net, weights, start.id)
        worker.memory_is = start.id
    return net


def pull(t: Training) -> None:
    """Of merge.method: pull. Own weights, moved towards the merged ones, the less the lower the
    learning rate of the step to come (PAPA, Jolicoeur-Martineau et al., 2024). Statistics move,
    too."""
    if not t.order.pulls:
        return
    set_rates(t)
    mix = _towards(t.order, body_lr(t.learner.optimizer) / t.run.train.lr)
    places = {each.name: each for each in (t.order.own, t.order.start)}
    with ExitStack() as opened:
        sources = {
            name: opened.enter_context(open_weights(t.worker.store, places[name]))
            for name in mix.names
        }
        assign_weights(t.net, dict(blend(mix, sources)), t.order.own.id)
    t.worker.memory_is = None


def _towards(order: TrainOrder, rate: float) -> Mix:
    """alpha of the own weights at the peak of the learning rate, all of them where it is zero."""
    assert order.rejoin is not None and order.rejoin.alpha is not None
    share = (1 - order.rejoin.alpha) * rate
    return Mix(weights=((order.own.name, 1 - share), (order.start.name, share)), divisor=1.0)


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


def past_of(order: TrainOrder, worker: WorkerContext) -> Past | None:
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


def _averaged(own: TrainState, others: tuple[Checkpoint, ...], worker: WorkerContext) -> TrainState:
    """With the mean of everyone's optimizer state; the moving average stays the run's own.

    Raises UserError where one's optimizer keeps other tensors than another's.
    """
    with ExitStack() as opened:
        states = {
            each.name: opened.enter_context(open_state(worker.store, each)) for each in others
        }
        sources = {name: train_state.of_optimizer(state) for name, state in states.items()}
        mean = dict(blend(Mix.mean(list(sources)), sources))
    return replace(own, tensors={**own.tensors, **mean})


def position_at(order: TrainOrder, past: Past | None) -> Position:
    if past is None:
        return Position(step=order.own.step)
    return past.position if isinstance(past, Momentum) else train_state.position_of(past)


def average_at(net: nn.Module, spec: TrainSpec, past: Past | None) -> Any:
    """The moving average as it was; a new one, equal to the network, where there is no past."""
    if isinstance(past, Momentum):
        return past.average
    average = create_average(net, spec)
    if average is not None and past is not None:
        train_state.give_back_average(past, average.module)
    return average


def scaler_of(past: Past | None) -> dict[str, Any] | None:
    """Of the loss, where training runs in float16."""
    if past is None:
        return None
    scaler: dict[str, Any] | None = (
        past.scaler if isinstance(past, Momentum) else past.scalars["scaler"]
    )
    return scaler
