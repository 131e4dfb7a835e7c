"""What the network is when an order begins: its start, its own past moved towards one, or warm."""

from contextlib import ExitStack

from torch import nn

from workers.blend import blend
from workers.checkpoints import open_weights
from workers.learning import Training, set_rates
from workers.model import assign_weights
from workers.optim import body_lr
from workers.types import Mix, TrainOrder
from workers.worker import Worker


def network(order: TrainOrder, worker: Worker) -> nn.Module:
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
