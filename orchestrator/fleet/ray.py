"""A fleet of Ray actors: one placement group and one warm process (or gang) per slot.

    submit -> slot: [running | queued] -> WorkerActor.perform -> stream of events -> events()
              merge actor, beside the slots, on no reserved CPU

Ray never restarts these actors. When one is lost, its whole slot and placement group are rebuilt,
because Ray would restart only one rank of a gang. Orders that had not begun move to another slot.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError

from orchestrator import config
from orchestrator.config import Experiment, secrets
from orchestrator.config.sections import FleetConfig
from orchestrator.fleet.cluster import (
    SlotResources,
    alive_nodes,
    capacity,
    connect,
    device,
    draining_nodes,
    refuse_infeasible,
    without_nodes,
)
from orchestrator.fleet.nodes import Nodes
from orchestrator.fleet.slot import QueuedOrder, Slot, create_merge_slot, create_slot
from workers.errors import UserError, first_line
from workers.heartbeat import Heartbeat
from workers.types import AnyEvent, AnyOrder, ErrorClass, Failed, WorkerConfig

HEARTBEAT_PERIOD_S = 2.0
"""Between two requests for heartbeats: negligible load, and often enough for a live table."""

NODES_PERIOD_S = 5.0
"""Between two checks of the cluster for new or draining nodes."""

NODE_DEATH_S = 5.0
"""Longest wait, after an actor died, for the news that its node has died."""

PEER_FAILURE_S = 5.0
"""Wait for the errors of the other ranks of a gang once one has failed."""

RECYCLE = frozenset({"oom", "error"})
"""Errors after which a process, above all its CUDA context, cannot be trusted."""


@dataclass
class _Timers:
    nodes_checked_at: float = field(default_factory=time.monotonic)
    heartbeats_checked_at: float = 0.0


class RayFleet:
    """Slots up to the size of the cluster and `fleet.max_concurrent_runs`, and one merge actor."""

    kind = "ray"

    def __init__(self, worker_config: WorkerConfig, spec: FleetConfig) -> None:
        self._worker_config = worker_config
        self._spec = spec
        self._needs = SlotResources.of(spec, worker_config)
        self._slots: list[Slot] = []
        self._merge = create_merge_slot(worker_config, {})
        self._waiting: list[tuple[AnyOrder, int]] = []
        """Orders whose slot was lost before they began."""
        self._timers = _Timers()
        self._nodes = Nodes()
        self._num_created = 0
        self._resize()

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    # Orders down

    def capacity(self, place: str, num_due: int) -> int:
        """Idle slots, plus one queued order per busy slot while more are due than slots exist.

        A queued order starts without a round trip to the driver. The last orders are not queued, so
        that they get the first free slot. Nothing is queued while a slot is starting, because it
        will be free sooner than a slot that may hang; nor behind a gang, whose ranks would have to
        give it back together.
        """
        if place == "merge":
            return max(0, 4 - len(self._merge.held))
        ready = [slot for slot in self._slots if slot.is_open]
        idle = sum(not slot.held for slot in ready) - len(self._waiting)
        ahead = sum(len(slot.held) == 1 and not slot.is_gang for slot in ready)
        may_queue = len(ready) == len(self._slots) and num_due > idle + len(self._slots)
        return max(0, idle) + (ahead if may_queue else 0)

    def submit(self, order: AnyOrder, attempt: int) -> None:
        if any(held.order.id == order.id for slot in self._all() for held in slot.held):
            return
        if order.place == "merge":
            self._merge.submit(order, attempt)
            return
        slot = self._best_slot(order)
        if slot is None:
            self._waiting.append((order, attempt))
        else:
            slot.submit(order, attempt)

    def _best_slot(self, order: AnyOrder) -> Slot | None:
        """The open slot with fewest orders; of equals one that has the model in memory."""
        ready = [slot for slot in self._slots if slot.is_open and len(slot.held) < slot.num_places]
        return min(ready, key=lambda s: (len(s.held), not s.is_warm_for(order)), default=None)

    def cancel(self, order: str) -> None:
        self._waiting = [entry for entry in self._waiting if entry[0].id != order]
        for slot in self._all():
            if any(held.order.id == order for held in slot.held):
                slot.held = [held for held in slot.held if held.order.id != order]
                self._rebuild(slot)

    def interrupt(self, reason: str) -> None:
        for slot in self._slots:
            slot.interrupt(reason)

    # Events up

    def events(self, timeout_s: float) -> list[AnyEvent]:
        """Wait for the first event, then take all that have arrived."""
        events = [*self._check_starts(), *self._settle_losses()]
        self._take_back()
        self._place_waiting()
        events += self._ready_events(0.0 if events else timeout_s)
        while more := self._ready_events(0.0):
            events += more
        return [*events, *self._check_heartbeats(), *self._check_nodes()]

    def _ready_events(self, timeout_s: float) -> list[AnyEvent]:
        streams = {stream: slot for slot in self._all() for stream in slot.streams()}
        starting = [ref for slot in self._all() for ref in slot.starting]
        waited = [*streams, *starting]
        if not waited:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(waited, num_returns=1, timeout=timeout_s, fetch_local=False)
        return [e for ref in ready if ref in streams for e in self._take(streams[ref], ref)]

    def _take(self, slot: Slot, stream: Any) -> list[AnyEvent]:
        """The next event of a stream, or those that follow from its end or the loss of its slot."""
        try:
            event: AnyEvent = ray.get(next(stream))
        except StopIteration:
            if (given_back := slot.on_stream_end(stream)) is not None:
                self._requeue([given_back])
            return self._after_end(slot)
        except RayError as error:
            slot.lost = time.monotonic(), error
            return []
        slot.on_event(event)
        if event.kind == "failed" and (slot.is_gang or event.error in RECYCLE):
            event = self._root_cause(slot, event)
            self._requeue(slot.held[1:])
            slot.held = []
            self._rebuild(slot)
        return [event]

    def _root_cause(self, slot: Slot, failed: Failed) -> Failed:
        """The cause of a gang's failure. A rank that lost a peer reports a plain `error`; one that
        knows more is preferred."""
        deadline = time.monotonic() + PEER_FAILURE_S
        for stream in slot.streams():
            if failed.error != "error":
                break
            failed = self._peer_failure(slot, stream, deadline - time.monotonic()) or failed
        return failed

    def _peer_failure(self, slot: Slot, stream: Any, timeout_s: float) -> Failed | None:
        ready, _ = ray.wait([stream], timeout=max(0.0, timeout_s), fetch_local=False)
        try:
            event = ray.get(next(stream)) if ready else None
        except StopIteration:
            return None
        except RayError as error:
            return _failed(slot.held[0], slot.name, *_loss(slot, error))
        return event if isinstance(event, Failed) else None

    def _after_end(self, slot: Slot) -> list[AnyEvent]:
        if slot.draining and not slot.held:
            self._rebuild(slot)
        return []

    def _settle_losses(self) -> list[AnyEvent]:
        """Fail the orders of dead actors, once it is known whether their nodes died with them."""
        events: list[AnyEvent] = []
        for slot in self._all():
            if slot.lost is None:
                continue
            since, error = slot.lost
            has_dead_node = bool(slot.nodes - alive_nodes())
            if has_dead_node or time.monotonic() - since > NODE_DEATH_S:
                events += self._fail(slot, *_loss(slot, error, has_dead_node))
        return events

    def _fail(self, slot: Slot, kind: ErrorClass, message: str) -> list[AnyEvent]:
        """Fail the running order, move those queued behind it, and rebuild the slot."""
        alive = [held for held in slot.held if not held.is_over]
        failed: list[AnyEvent] = [_failed(held, slot.name, kind, message) for held in alive[:1]]
        self._requeue(alive[1:])
        slot.held = []
        self._rebuild(slot)
        return failed

    def _requeue(self, held: list[QueuedOrder]) -> None:
        self._waiting += [(h.order, h.attempt) for h in held if not h.is_over]

    def _take_back(self) -> None:
        """Orders that wait behind others return from draining slots, and where a slot is idle."""
        for slot in self._slots:
            if (order := slot.poll_retraction()) is not None:
                self._requeue([order])
        num_idle = sum(slot.is_open and not slot.held for slot in self._slots) - len(self._waiting)
        for slot in self._slots:
            if (slot.draining or num_idle > 0) and slot.retract():
                num_idle -= 1

    def _place_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for order, attempt in waiting:
            self.submit(order, attempt)

    # Slots

    def _all(self) -> list[Slot]:
        return [self._merge, *self._slots]

    def _rebuild(self, slot: Slot) -> None:
        self._requeue(slot.held)
        slot.destroy()
        if slot is self._merge:
            self._merge = create_merge_slot(
                self._worker_config, without_nodes({}, self._nodes.excluded)
            )
        else:
            self._slots.remove(slot)
            self._resize()

    def _resize(self) -> None:
        """As many slots as fit the cluster now, and as fleet.max_concurrent_runs allows. Too many
        are left when a node is gone: those that wait for a place would wait for its return."""
        excluded = self._nodes.excluded
        room = capacity(self._needs, self._spec.label_selector, excluded)
        wanted = min(self._spec.max_concurrent_runs or room, room)
        selector = without_nodes(self._spec.label_selector, excluded)
        while len(self._slots) < wanted:
            name = f"slot-{self._num_created}"
            self._num_created += 1
            self._slots.append(create_slot(name, self._worker_config, selector, self._needs))
        surplus = max(0, len(self._slots) - wanted)
        for slot in [slot for slot in reversed(self._slots) if slot.starting][:surplus]:
            slot.destroy()
            self._slots.remove(slot)

    def _check_starts(self) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for slot in self._all():
            try:
                if slot.poll_start():
                    self._nodes.note_start(slot.nodes)
            except RayError as error:
                events += self._on_start_failed(slot, error)
        return events

    def _on_start_failed(self, slot: Slot, error: RayError) -> list[AnyEvent]:
        """Try elsewhere. That a node died, or left, says nothing about the others.

        Raises:
            UserError: no slot is left, and there is no node to try.
        """
        nodes = slot.reserved_nodes()
        events: list[AnyEvent] = []
        if nodes <= alive_nodes():
            events += self._nodes.note_failure(nodes, cause_of_death(error))
        self._rebuild(slot)
        if events and not self._slots:
            raise UserError(
                f"no worker can start on any node of the cluster ({cause_of_death(error)}); mend "
                "that, and the same command continues"
            )
        return events

    # Heartbeats and nodes

    def heartbeats(self) -> list[Heartbeat]:
        return [slot.heartbeat for slot in self._slots if slot.heartbeat is not None]

    def _check_heartbeats(self) -> list[AnyEvent]:
        """Failures of slots that made no progress for fleet.heartbeat_s."""
        if time.monotonic() - self._timers.heartbeats_checked_at < HEARTBEAT_PERIOD_S:
            return []
        self._timers.heartbeats_checked_at = time.monotonic()
        events: list[AnyEvent] = []
        for slot in list(self._all()):
            try:
                slot.poll_heartbeats()
            except RayError as error:
                slot.lost = slot.lost or (time.monotonic(), error)
                continue
            silent_s = slot.silent_s
            if slot.held and silent_s > max(self._spec.heartbeat_s, slot.limit_s):
                message = (
                    f"{slot.name} made no progress for {silent_s:.0f} s "
                    f"(fleet.heartbeat_s is {self._spec.heartbeat_s:g})"
                )
                events += self._fail(slot, "hang", message)
        return events

    def _check_nodes(self) -> list[AnyEvent]:
        """Create slots on new nodes, and interrupt training on draining ones."""
        if time.monotonic() - self._timers.nodes_checked_at < NODES_PERIOD_S:
            return []
        self._timers.nodes_checked_at = time.monotonic()
        draining = draining_nodes()
        for slot in list(self._slots):
            if not slot.draining and slot.nodes & draining:
                slot.draining = True
                slot.interrupt("its node is being drained")
                if not slot.held:
                    self._rebuild(slot)
        self._resize()
        return []

    def waiting_for(self) -> str | None:
        if not self._slots:
            return f"a node with room for a slot ({self._needs})"
        starting = [slot for slot in self._slots if not slot.is_open]
        if not starting:
            return None
        return f"{len(starting)} of {len(self._slots)} slots are starting ({self._needs})"

    def close(self) -> None:
        for slot in self._all():
            slot.destroy()
        ray.shutdown()


def open_cluster(experiment: Experiment, address: str) -> WorkerConfig:
    """Connect to the cluster; the configuration of its workers.

    Raises:
        UserError: nothing answers, or the cluster can never run this experiment.
    """
    connect(address, secrets.environment(experiment.fleet.env))
    try:
        worker_config = config.worker_config(experiment, device(experiment.fleet))
        needs = SlotResources.of(experiment.fleet, worker_config)
        refuse_infeasible(needs, experiment.fleet.label_selector)
    except UserError:
        ray.shutdown()
        raise
    return worker_config


def _loss(slot: Slot, error: Exception, has_dead_node: bool = False) -> tuple[ErrorClass, str]:
    """The class of a failure whose cause is the death of an actor, and the cause in words."""
    if has_dead_node:
        return "preempted", f"{slot.name} died with its node"
    if getattr(error, "preempted", False):
        return "preempted", f"{slot.name} died: its node was reclaimed"
    kind: ErrorClass = "oom" if isinstance(error, OutOfMemoryError) else "lost"
    return kind, f"{slot.name} died: {cause_of_death(error)}"


def cause_of_death(error: Exception) -> str:
    """Why an actor died, as one line: what Ray knows of the exit of its process, if anything."""
    exit_ = re.search(r"Worker exit type: (\w+) Worker exit detail: ([^\n]+)", str(error))
    if exit_ is not None:
        return f"{exit_[1]}, {exit_[2].strip().partition('. There are')[0]}"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def _failed(held: QueuedOrder, slot: str, kind: ErrorClass, message: str) -> Failed:
    return Failed(
        order=held.order.id,
        run=held.order.run_id,
        attempt=held.attempt,
        slot=slot,
        error=kind,
        message=message,
    )
