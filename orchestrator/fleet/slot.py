"""A slot: a placement group, the actors in it (one per rank), and the orders they hold."""

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
"""Ray's decorator adds attributes that no type checker sees."""


@dataclass
class QueuedOrder:
    """An order that a slot's actors run, or will run next."""

    order: AnyOrder
    attempt: int
    streams: list[Any]
    """One per rank that takes part, until it ends."""
    is_over: bool = False
    """Its last event was heard; the ends of its streams were not yet."""


@dataclass
class Slot:
    name: str
    actors: list[Any]
    group: PlacementGroup | None
    starting: list[Any]
    """References of `ready`, until all have answered."""
    nodes: frozenset[str] = frozenset()
    held: list[QueuedOrder] = field(default_factory=list)
    draining: bool = False
    heartbeat: Heartbeat | None = None
    _shape: str | None = None
    _asked: Any = None
    _asked_at: float = 0.0

    @property
    def is_gang(self) -> bool:
        return len(self.actors) > 1

    @property
    def is_open(self) -> bool:
        return not self.starting and not self.draining

    def is_warm_for(self, order: AnyOrder) -> bool:
        return self._shape == shape(order)

    def poll_start(self) -> bool:
        """Whether the actors have just come up; raises what kept them from it."""
        if not self.starting:
            return False
        ready, pending = ray.wait(self.starting, num_returns=len(self.starting), timeout=0)
        if pending:
            ray.get(ready)  # a rank that failed to start shows at once
            return False
        self.nodes = frozenset(ray.get(ready))
        self.starting = []
        return True

    def submit(self, order: AnyOrder, attempt: int) -> None:
        """Queue an order. Only training needs the whole gang; else rank 0 works alone."""
        ranks = self.actors if order.kind == "train" else self.actors[:1]
        meeting = None
        if len(ranks) > 1:
            meeting = ray.get(ranks[0].rendezvous.remote())
        streams = [actor.perform.remote(order, attempt, meeting) for actor in ranks]
        self.held.append(QueuedOrder(order, attempt, streams))
        self._shape = shape(order) or self._shape

    def streams(self) -> list[Any]:
        return self.held[0].streams if self.held else []

    def on_event(self, event: AnyEvent) -> None:
        self.held[0].is_over |= event.kind in CLOSING

    def on_stream_end(self, stream: Any) -> None:
        """A rank came to the end of its stream; with the last one the order is over."""
        head = self.held[0]
        head.streams = [other for other in head.streams if other is not stream]
        if not head.streams:
            self.held.pop(0)

    def interrupt(self, reason: str) -> None:
        for actor in self.actors:
            actor.interrupt.remote(reason)

    def poll_heartbeat(self) -> float:
        """Take an answered pulse and ask for the next; seconds of silence so far."""
        now = time.monotonic()
        if self._asked is not None:
            answered, _ = ray.wait([self._asked], timeout=0)
            if not answered:
                return now - self._asked_at
            self._asked = None
            self.heartbeat = _answer(answered[0], self.heartbeat)
        if not self.starting:
            self._asked, self._asked_at = self.actors[0].heartbeat.remote(), now
        return self.heartbeat.silent_s if self.heartbeat is not None else 0.0

    def destroy(self) -> None:
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
        if self.group is not None:
            remove_placement_group(self.group)
        self.held, self.starting, self._asked = [], [], None


def _answer(ref: Any, last: Heartbeat | None) -> Heartbeat | None:
    """A dead actor's pulse is no news: its stream says so."""
    try:
        pulse: Heartbeat = ray.get(ref)
    except ray.exceptions.RayError:
        return last
    return pulse


def shape(order: AnyOrder) -> str | None:
    """What a warm process keeps for the order: its model."""
    if order.kind == "train":
        return model_key(order.run.model)
    cohort = getattr(order, "cohort", None)
    return model_key(cohort.model) if cohort is not None else None


def create_slot(name: str, setting: WorkerConfig, spec: FleetConfig, needs: SlotResources) -> Slot:
    """Ask for a slot; it opens once its placement group is placed and its processes are warm."""
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
        ).remote(setting, name, rank, needs.ranks)
        for rank in range(needs.ranks)
    ]
    return Slot(name, actors, group, starting=[actor.ready.remote() for actor in actors])


def create_merge_slot(setting: WorkerConfig) -> Slot:
    """The merge actor reserves nothing: it drives recipes, and tastes while training goes on.

    It works on the CPU and, alone, on one rank.
    """
    alone = setting.model_copy(update={"device": "cpu", "ranks": 1})
    actor = _ACTOR.options(num_cpus=0).remote(alone, "merge", 0, 1)
    return Slot("merge", [actor], None, starting=[actor.ready.remote()])
