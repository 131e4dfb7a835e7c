"""Restoring a run: weights, optimizer, position and moving average, from this worker's memory or
from the checkpoint."""

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
    """The warm network with the start's weights, loaded unless it has them already.

    The worker's warm state of the run remains valid even if the network has held other weights
    since, for tastes or after a merge.
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
    """Apply merge.method `pull`: move the own weights towards the merged ones (PAPA,
    Jolicoeur-Martineau et al., 2024). The share falls with the learning rate of the next step.
    BatchNorm statistics move as well."""
    if not t.order.is_pull:
        return
    set_rates(t)
    mix = _pull_mix(t.order, body_lr(t.optimization.optimizer) / t.run.train.lr)
    checkpoints = {c.name: c for c in (t.order.own_checkpoint, t.order.start)}
    with ExitStack() as opened:
        sources = {
            name: opened.enter_context(open_weights(t.worker.store, checkpoints[name]))
            for name in mix.names
        }
        assign_weights(t.net, dict(blend(mix, sources)), t.order.own_checkpoint.id)
    t.worker.loaded_checkpoint_id = None


def _pull_mix(order: TrainOrder, rate: float) -> Mix:
    """The own weights with share alpha at the peak of the learning rate, and 1 if it is zero."""
    assert order.rejoin is not None and order.rejoin.alpha is not None
    share = (1 - order.rejoin.alpha) * rate
    return Mix(
        weights=((order.own_checkpoint.name, 1 - share), (order.start.name, share)), divisor=1.0
    )


@dataclass
class WarmState:
    """State besides the weights of checkpoint `id`, in memory to continue without loading."""

    id: str
    optimizer: Optimizer
    position: TrainPosition
    scaler: dict[str, Any] | None
    average: Any
    """timm's moving average. None: other ranks, or the run keeps none."""


RestoredState = WarmState | TrainState


def restore(order: TrainOrder, worker: WorkerContext) -> RestoredState | None:
    """The run's state at its own checkpoint; takes the worker's warm state. None: a new run."""
    warm, worker.warm_state = worker.warm_state, None
    if not order.own_checkpoint.name.startswith(f"{order.run.id}/"):
        return None
    peers = order.rejoin.peers if order.rejoin is not None else ()
    if isinstance(warm, WarmState) and warm.id == order.own_checkpoint.id and not peers:
        return warm
    state = load_train_state(worker.store, order.own_checkpoint)
    if state is None:
        raise ValueError(
            f"checkpoint {order.own_checkpoint.id} holds no training state to resume from"
        )
    return _averaged(state, peers, worker) if peers else state


def _averaged(own: TrainState, peers: tuple[Checkpoint, ...], worker: WorkerContext) -> TrainState:
    """The own state with the mean of the peers' optimizer states, which include its own.

    Raises UserError if two optimizers keep different tensors.
    """
    with ExitStack() as opened:
        states = {peer.name: opened.enter_context(open_state(worker.store, peer)) for peer in peers}
        sources = {name: train_state.optimizer_tensors(state) for name, state in states.items()}
        mean = dict(blend(Mix.mean(list(sources)), sources))
    return replace(own, tensors={**own.tensors, **mean})


def position_at(order: TrainOrder, restored: RestoredState | None) -> TrainPosition:
    if restored is None:
        return TrainPosition(step=order.own_checkpoint.step)
    if isinstance(restored, WarmState):
        return restored.position
    return train_state.position_of(restored)


def average_at(net: nn.Module, spec: TrainConfig, restored: RestoredState | None) -> Any:
    """The restored moving average, or a new one equal to the network."""
    if isinstance(restored, WarmState):
        return restored.average
    average = create_average(net, spec)
    if average is not None and restored is not None:
        train_state.restore_average(restored, average.module)
    return average


def scaler_of(restored: RestoredState | None) -> dict[str, Any] | None:
    """State of the loss scaler of float16 training."""
    if restored is None:
        return None
    scaler: dict[str, Any] | None = (
        restored.scaler if isinstance(restored, WarmState) else restored.scalars["scaler"]
    )
    return scaler
