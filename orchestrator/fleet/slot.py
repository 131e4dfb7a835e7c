"""A slot: a placement group, its actors (one per rank), and the orders that they hold."""

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.config.sections import FleetConfig
from orchestrator.fleet.cluster import SlotResources
from orchestrator.state.reducers import CLOSING
from workers.heartbeat import Heartbeat
from workers.ray_actor import WorkerActor
from workers.types import AnyEvent, AnyOrder, WorkerConfig, model_key

_ACTOR: Any = WorkerActor
"""The actor class, untyped: Ray's decorator adds attributes that type checkers do not see."""


@dataclass
class QueuedOrder:
    """An order that the actors of a slot run, or will run next."""

    order: AnyOrder
    attempt: int
    streams: list[Any]
    """Streams of events that have not ended, one per rank that takes part."""
    is_over: bool = False
    """Whether its last event has arrived, possibly before the ends of its streams."""


@dataclass
class Slot:
    """Processes that carry out one order at a time, all on the same resources."""

    name: str
    actors: list[Any]
    """One per rank."""
    group: PlacementGroup | None
    """Reserved resources. None: the merge actor, which reserves none."""
    starting: list[Any]
    """References of `ready`; empty once all actors have started."""
    nodes: frozenset[str] = frozenset()
    """Ids of the nodes of its actors."""
    held: list[QueuedOrder] = field(default_factory=list)
    """The running order and those queued behind it."""
    draining: bool = False
    """Whether a node of it will soon stop; it gets no more orders."""
    heartbeat: Heartbeat | None = None
    """The last one that arrived."""
    _warm_model: str | None = None
    """Key of the model in memory once all held orders have run."""
    _request: Any = None
    """Reference of the heartbeat that was requested and has not arrived."""
    _requested_at: float = 0.0

    @property
    def is_gang(self) -> bool:
        return len(self.actors) > 1

    @property
    def is_open(self) -> bool:
        """Whether it takes orders."""
        return not self.starting and not self.draining

    def is_warm_for(self, order: AnyOrder) -> bool:
        """Whether the model that the order needs will be in memory."""
        return self._warm_model == model_of(order)

    def poll_start(self) -> bool:
        """Whether all actors have started since the last call. Raises if one failed to start."""
        if not self.starting:
            return False
        ready, pending = ray.wait(self.starting, num_returns=len(self.starting), timeout=0)
        if pending:
            ray.get(ready)  # raises at once if one of the ranks failed to start
            return False
        self.nodes = frozenset(ray.get(ready))
        self.starting = []
        return True

    def submit(self, order: AnyOrder, attempt: int) -> None:
        """Queue an order. Training takes all ranks, any other order rank 0 alone."""
        ranks = self.actors if order.kind == "train" else self.actors[:1]
        rendezvous = None
        if len(ranks) > 1:
            rendezvous = ray.get(ranks[0].rendezvous.remote())
        streams = [actor.perform.remote(order, attempt, rendezvous) for actor in ranks]
        self.held.append(QueuedOrder(order, attempt, streams))
        self._warm_model = model_of(order) or self._warm_model

    def streams(self) -> list[Any]:
        """Streams of the running order."""
        return self.held[0].streams if self.held else []

    def on_event(self, event: AnyEvent) -> None:
        """Take note of an event of the running order. After a failure the worker keeps no model."""
        self.held[0].is_over |= event.kind in CLOSING
        if event.kind == "failed":
            later = (model_of(queued.order) for queued in reversed(self.held[1:]))
            self._warm_model = next(filter(None, later), None)

    def on_stream_end(self, stream: Any) -> None:
        """Take note that the stream of a rank has ended; with the last one the order is over."""
        head = self.held[0]
        head.streams = [other for other in head.streams if other is not stream]
        if not head.streams:
            self.held.pop(0)

    def interrupt(self, reason: str) -> None:
        """Ask training to checkpoint and end."""
        for actor in self.actors:
            actor.interrupt.remote(reason)

    def poll_heartbeat(self) -> float:
        """Take a heartbeat that arrived and request the next. Returns seconds without progress."""
        now = time.monotonic()
        if self._request is not None:
            arrived, _ = ray.wait([self._request], timeout=0)
            if not arrived:
                return now - self._requested_at
            self._request = None
            self.heartbeat = _answer(arrived[0], self.heartbeat)
        if not self.starting:
            self._request, self._requested_at = self.actors[0].heartbeat.remote(), now
        return self.heartbeat.silent_s if self.heartbeat is not None else 0.0

    @property
    def limit_s(self) -> float:
        """Seconds that the work at hand may be silent, if more than fleet.heartbeat_s."""
        return self.heartbeat.limit_s if self.heartbeat is not None else 0.0

    def destroy(self) -> None:
        """Kill the actors, drop all orders, and release the resources."""
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        if self.group is not None:
            remove_placement_group(self.group)
        self.held, self.starting, self._request = [], [], None


def _answer(ref: Any, last: Heartbeat | None) -> Heartbeat | None:
    """The heartbeat, or the last one if the actor is dead, which its stream of events reports."""
    try:
        heartbeat: Heartbeat = ray.get(ref)
    except ray.exceptions.RayError:
        return last
    return heartbeat


def model_of(order: AnyOrder) -> str | None:
    """Key of the model that a process keeps in memory after the order. None: it loads none."""
    if order.kind == "train":
        return model_key(order.run.model)
    cohort = getattr(order, "cohort", None)
    return model_key(cohort.model) if cohort is not None else None


def create_slot(
    name: str, worker_config: WorkerConfig, spec: FleetConfig, needs: SlotResources
) -> Slot:
    """Request a slot. It opens once its resources are reserved and its processes have started."""
    group = placement_group(
        [needs.bundle] * needs.ranks,
        strategy="PACK",
        bundle_label_selector=[dict(spec.label_selector)] * needs.ranks
        if spec.label_selector
        else None,
    )
    actors = [
        _ACTOR.options(
            num_cpus=needs.bundle["CPU"],
            num_gpus=needs.bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        ).remote(worker_config, name, rank, needs.ranks)
        for rank in range(needs.ranks)
    ]
    return Slot(name, actors, group, starting=[actor.ready.remote() for actor in actors])


def create_merge_slot(worker_config: WorkerConfig) -> Slot:
    """The merge actor: one process on the CPU, beside the slots and without reserved resources."""
    single = worker_config.model_copy(update={"device": "cpu", "ranks": 1})
    actor = _ACTOR.options(num_cpus=0).remote(single, "merge", 0, 1)
    return Slot("merge", [actor], None, starting=[actor.ready.remote()])
