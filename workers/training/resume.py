"""Restoring a run: what the network is when an order begins, and optimizer, position and moving
average, from this worker's memory or from the checkpoint."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.merging.blend import blend
from workers.models.pretrained import assign_weights
from workers.storage.checkpoints import TrainState, load_train_state, open_state, open_weights
from workers.training import train_state
from workers.training.loop import TrainLoop, set_rates
from workers.training.optim import body_lr, create_average
from workers.training.train_state import TrainPosition
from workers.types import Checkpoint, Mix, TrainOrder


def starting_weights(order: TrainOrder, worker: WorkerContext) -> nn.Module:
    """The warm network with the start's weights; nothing is loaded if it already is the start.

    What the worker keeps of the run's training stays, though its network may have tasted soups or
    been given merged weights since.
    """
    net = worker.model(order.run.model, order.run.train.drop_path)
    start = order.own_checkpoint if order.is_pull else order.start
    if worker.loaded_checkpoint_id != start.id:
        worker.loaded_checkpoint_id = None
        with open_weights(worker.store, start) as weights:
            assign_weights(net, weights, start.id)
        worker.loaded_checkpoint_id = start.id
    return net


def pull_towards_mean(t: TrainLoop) -> None:
    """Of merge.method: pull. Own weights, moved towards the merged ones, the less the lower the
    learning rate of the step to come (PAPA, Jolicoeur-Martineau et al., 2024). Statistics move,
    too."""
    if not t.order.is_pull:
        return
    set_rates(t)
    mix = _towards(t.order, body_lr(t.learner.optimizer) / t.run.train.lr)
    places = {each.name: each for each in (t.order.own_checkpoint, t.order.start)}
    with ExitStack() as opened:
        sources = {
            name: opened.enter_context(open_weights(t.worker.store, places[name]))
            for name in mix.names
        }
        assign_weights(t.net, dict(blend(mix, sources)), t.order.own_checkpoint.id)
    t.worker.loaded_checkpoint_id = None


def _towards(order: TrainOrder, rate: float) -> Mix:
    """alpha of the own weights at the peak of the learning rate, all of them where it is zero."""
    assert order.rejoin is not None and order.rejoin.alpha is not None
    share = (1 - order.rejoin.alpha) * rate
    return Mix(
        weights=((order.own_checkpoint.name, 1 - share), (order.start.name, share)), divisor=1.0
    )


@dataclass
class WarmState:
    """What a worker keeps beside the weights of the checkpoint `id`, to go on without loading."""

    id: str
    optimizer: Optimizer
    position: TrainPosition
    scaler: dict[str, Any] | None
    average: Any
    """timm's moving average, on rank 0 of a run that keeps one."""


RestoredState = WarmState | TrainState


def restore(order: TrainOrder, worker: WorkerContext) -> RestoredState | None:
    """None where the run begins, at a base. What the worker has kept is taken from it."""
    kept, worker.warm_state = worker.warm_state, None
    if not order.own_checkpoint.name.startswith(f"{order.run.id}/"):
        return None
    others = order.rejoin.peers if order.rejoin is not None else ()
    if isinstance(kept, WarmState) and kept.id == order.own_checkpoint.id and not others:
        return kept
    state = load_train_state(worker.store, order.own_checkpoint)
    if state is None:
        raise ValueError(
            f"checkpoint {order.own_checkpoint.id} holds no training state to resume from"
        )
    return _averaged(state, others, worker) if others else state


def _averaged(own: TrainState, others: tuple[Checkpoint, ...], worker: WorkerContext) -> TrainState:
    """With the mean of everyone's optimizer state; the moving average stays the run's own.

    Raises UserError where one's optimizer keeps other tensors than another's.
    """
    with ExitStack() as opened:
        states = {
            each.name: opened.enter_context(open_state(worker.store, each)) for each in others
        }
        sources = {name: train_state.optimizer_tensors(state) for name, state in states.items()}
        mean = dict(blend(Mix.mean(list(sources)), sources))
    return replace(own, tensors={**own.tensors, **mean})


def position_at(order: TrainOrder, past: RestoredState | None) -> TrainPosition:
    if past is None:
        return TrainPosition(step=order.own_checkpoint.step)
    return past.position if isinstance(past, WarmState) else train_state.position_of(past)


def average_at(net: nn.Module, spec: TrainConfig, past: RestoredState | None) -> Any:
    """The moving average as it was; a new one, equal to the network, where there is no past."""
    if isinstance(past, WarmState):
        return past.average
    average = create_average(net, spec)
    if average is not None and past is not None:
        train_state.restore_average(past, average.module)
    return average


def scaler_of(past: RestoredState | None) -> dict[str, Any] | None:
    """Of the loss, where training runs in float16."""
    if past is None:
        return None
    scaler: dict[str, Any] | None = (
        past.scaler if isinstance(past, WarmState) else past.scalars["scaler"]
    )
    return scaler
