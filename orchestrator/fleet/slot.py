"""A slot: a placement group, its actors (one per rank), and the orders that they hold."""

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.fleet.cluster import SlotResources, node_of
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
    """References of `ready` of the actors that have not started yet."""
    nodes: frozenset[str] = frozenset()
    """Ids of the nodes of the actors that have started."""
    held: list[QueuedOrder] = field(default_factory=list)
    """The running order and those queued behind it."""
    draining: bool = False
    """Whether a node of it will soon stop; it gets no more orders."""
    lost: tuple[float, Exception] | None = None
    """(monotonic time, error) when an actor was found dead. None: all are alive."""
    beats: dict[int, Heartbeat] = field(default_factory=dict)
    """The last heartbeat of every rank."""
    _warm_model: str | None = None
    """Key of the model in memory once all held orders have run."""
    _requests: dict[int, tuple[Any, float]] = field(default_factory=dict)
    """By rank: reference and monotonic time of the last request for a heartbeat."""
    _retraction: tuple[Any, QueuedOrder] | None = None
    """(reference of the answer, the order) that the actor was asked to give back."""

    @property
    def is_gang(self) -> bool:
        return len(self.actors) > 1

    @property
    def num_places(self) -> int:
        """Orders that it holds at a time: one may wait behind the running one, except of a gang."""
        return 1 if self.is_gang else 2

    @property
    def is_open(self) -> bool:
        """Whether it takes orders."""
        return not self.starting and not self.draining and self.lost is None

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The last one of rank 0. None: none has arrived."""
        return self.beats.get(0)

    def is_warm_for(self, order: AnyOrder) -> bool:
        """Whether the model that the order needs will be in memory."""
        return self._warm_model == model_of(order)

    def poll_start(self) -> bool:
        """Whether all actors have started since the last call. Raises if one failed to start."""
        if not self.starting:
            return False
        ready, self.starting = ray.wait(
            self.starting, num_returns=len(self.starting), timeout=0, fetch_local=False
        )
        self.nodes |= frozenset(ray.get(ready))
        return not self.starting

    def reserved_nodes(self) -> frozenset[str]:
        """Ids of the nodes where it has resources, or an actor. Empty: nowhere yet."""
        if self.group is None:
            return frozenset(filter(None, map(node_of, self.actors)))
        table = placement_group_table(self.group)
        return frozenset(filter(None, table.get("bundles_to_node_id", {}).values()))

    def submit(self, order: AnyOrder, attempt: int) -> None:
        """Queue an order. Training takes all ranks, any other order rank 0 alone."""
        ranks = self.actors if order.kind == "train" else self.actors[:1]
        # A reference: the actors wait for it, not the driver, and fail if rank 0 is dead.
        rendezvous = ranks[0].rendezvous.remote() if len(ranks) > 1 else None
        streams = [actor.perform.remote(order, attempt, rendezvous) for actor in ranks]
        self.held.append(QueuedOrder(order, attempt, streams))
        self._warm_model = model_of(order) or self._warm_model

    def streams(self) -> list[Any]:
        """Streams of the running order. None once an actor was lost: its loss is settled first."""
        return self.held[0].streams if self.held and self.lost is None else []

    def on_event(self, event: AnyEvent) -> None:
        """Take note of an event of the running order. After a failure the worker keeps no model."""
        self.held[0].is_over |= event.kind in CLOSING
        if event.kind == "failed":
            later = (model_of(queued.order) for queued in reversed(self.held[1:]))
            self._warm_model = next(filter(None, later), None)

    def on_stream_end(self, stream: Any) -> QueuedOrder | None:
        """Take note that the stream of a rank has ended; with the last one the order is over.

        Returns the order if it ended without its last event, because it was retracted."""
        head = self.held[0]
        head.streams = [other for other in head.streams if other is not stream]
        if head.streams:
            return None
        self.held.pop(0)
        if head.is_over:
            return None
        if self._retraction is not None and self._retraction[1] is head:
            self._retraction = None
        return head

    def interrupt(self, reason: str) -> None:
        """Ask its orders to checkpoint and end, also those that have not begun."""
        for held in self.held:
            for actor in self.actors:
                actor.interrupt.remote(held.order.id, reason)

    def retract(self) -> bool:
        """Ask for the last order that waits behind the running one; False: there is none, or the
        answer to an earlier request is awaited."""
        if len(self.held) < 2 or self.is_gang or self._retraction is not None:
            return False
        last = self.held[-1]
        self._retraction = self.actors[0].retract.remote(last.order.id, last.attempt), last
        return True

    def poll_retraction(self) -> QueuedOrder | None:
        """An order that was given back since the last call."""
        if self._retraction is None:
            return None
        ref, order = self._retraction
        if not ray.wait([ref], timeout=0)[0]:
            return None
        self._retraction = None
        try:
            given_back = ray.get(ref)
        except ray.exceptions.RayError:
            return None  # the actor is dead, and all its orders move with it
        if not given_back or order not in self.held:
            return None
        self.held.remove(order)
        return order

    def poll_heartbeats(self) -> None:
        """Take heartbeats that arrived, and request the next ones. Raises RayError if an actor is
        dead."""
        if self.starting:
            return
        for rank, actor in enumerate(self.actors):
            if rank in self._requests:
                ref, _ = self._requests[rank]
                if not ray.wait([ref], timeout=0)[0]:
                    continue
                del self._requests[rank]
                self.beats[rank] = ray.get(ref)
            self._requests[rank] = actor.heartbeat.remote(), time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since any rank of the running order made progress, or answered."""
        if not self.held:
            return 0.0
        running = self.held[0].order.id
        busy = [rank for rank, beat in self.beats.items() if beat.order == running]
        return min(self._silence(rank) for rank in busy or [0])

    def _silence(self, rank: int) -> float:
        _, requested_at = self._requests.get(rank, (None, time.monotonic()))
        beat = self.beats.get(rank)
        return max(beat.silent_s if beat else 0.0, time.monotonic() - requested_at)

    @property
    def limit_s(self) -> float:
        """Seconds that the work at hand may be silent, if more than fleet.heartbeat_s."""
        return max((beat.limit_s for beat in self.beats.values()), default=0.0)

    def destroy(self) -> None:
        """Kill the actors, drop all orders, and release the resources."""
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        if self.group is not None:
            remove_placement_group(self.group)
        self.held, self.starting, self._requests = [], [], {}


def model_of(order: AnyOrder) -> str | None:
    """Key of the model that a process keeps in memory after the order. None: it loads none."""
    if order.kind == "train":
        return model_key(order.run.model)
    cohort = getattr(order, "cohort", None)
    return model_key(cohort.model) if cohort is not None else None


def create_slot(
    name: str, worker_config: WorkerConfig, selector: dict[str, str], needs: SlotResources
) -> Slot:
    """Request a slot on nodes with the labels of `selector`. It opens once its resources are
    reserved and its processes have started."""
    group = placement_group(
        [needs.bundle] * needs.ranks,
        strategy="PACK",
        bundle_label_selector=[selector] * needs.ranks if selector else None,
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


def create_merge_slot(worker_config: WorkerConfig, selector: dict[str, str]) -> Slot:
    """The merge actor: one process on the CPU, beside the slots and without reserved resources, on
    a node with the labels of `selector`."""
    single = worker_config.model_copy(update={"device": "cpu", "ranks": 1})
    actor = _ACTOR.options(num_cpus=0, label_selector=selector or None).remote(
        single, "merge", 0, 1
    )
    return Slot("merge", [actor], None, starting=[actor.ready.remote()])
