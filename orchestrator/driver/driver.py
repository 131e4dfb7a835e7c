"""The driver: replay the ledger, order what is due, write down what happened, until nothing is due.

        due(moment) --orders--> fleet
             ^                    |
        apply(state, event) <--events
             ^
           ledger          every event is in the ledger before anything follows from it

It never touches a tensor. Killed at any line, another one continues from the ledger. While the
store fails, it waits, and the fleet works on.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping

from orchestrator import schedule
from orchestrator.driver.clock import steady_clock
from orchestrator.driver.inventory import with_expected_files
from orchestrator.driver.lease import Lease
from orchestrator.driver.ledger import Ledger
from orchestrator.driver.patience import Patience
from orchestrator.driver.publish import Publisher, served_problem
from orchestrator.experiment.resolved import ExpandedExperiment
from orchestrator.fleet.base import Fleet
from orchestrator.schedule import retry, serving
from orchestrator.schedule.moment import Moment
from orchestrator.state.reducers import apply, fold, is_stale
from orchestrator.state.state import State
from workers.heartbeat import Heartbeat
from workers.storage import manifest
from workers.storage.layout import FINISH
from workers.storage.store import Store
from workers.types import (
    AnyEvent,
    AnyOrder,
    Cancelled,
    Checkpointed,
    Finished,
    FinishRequested,
    Opened,
    Ordered,
    ServedDamaged,
    Stopped,
    ema_id,
)

POLL_S = 0.5
"""Longest wait for events: bounds how late a pause's end or a finish request is seen."""

FINISH_POLL_S = 5.0

IDLE_S = 0.01
"""A call for events that returns none earlier than this did not wait."""

UNKNOWN_GRACE_S = 60.0
"""Grace period while no checkpoint was measured."""
MIN_GRACE_S = 10.0
CHECKPOINTS_PER_GRACE = 3
"""A worker may wait for the checkpoints before, then it writes its last one."""

SPARE_ORDERS = 16
"""Orders of a kind that are looked at beyond two per slot: the merge actor takes many at once."""

Watch = Callable[[Moment, list[AnyEvent], list[Heartbeat], str | None], None]


Damage = Callable[[Store, State], list[AnyEvent]]


class Driver:
    def __init__(
        self,
        expanded: ExpandedExperiment,
        store: Store,
        ledger: Ledger,
        lease: Lease,
        fleet: Fleet,
        watch: Watch,
        now: Callable[[], float] | None = None,
        retry_failed: bool = False,
        damage: Damage = lambda store, state: [],
    ) -> None:
        """`retry_failed`: what was given up before is tried again. `damage` finds files that differ
        from the ledger, when the driver opens."""
        self.expanded = expanded
        self.store = store
        self.ledger = ledger
        self.lease = lease
        self.fleet = fleet
        self.watch = watch
        self.now = now or steady_clock()
        self._retry_failed = retry_failed
        self.publisher = Publisher(store, lease)
        self._find_damage = damage
        hours = expanded.experiment.fleet.storage_patience
        self._patience = Patience(
            store, hours, self._wait_for_store, lambda: self.stop_reason is not None
        )
        self._unread: list[AnyEvent] = []
        """Events that came while the store failed."""
        self.moment = Moment(expanded, State())
        """Replaced after every commit."""
        self.stop_reason: str | None = None
        """Set by a signal handler; the loop ends at its next turn."""
        self._due_since: dict[str, float] = {}
        self._cut_since: float | None = None
        """Since when more orders have been due than were looked at."""
        self._looked_for_finish_at = 0.0
        self._training_ends_at: float | None = None

    @property
    def state(self) -> State:
        return self.moment.state

    def run(self) -> State:
        """Drive to the end, or to the first stop request.

        Raises:
            LeaseLost: another driver has taken over.
            StoreUnavailable: the store failed for longer than fleet.storage_patience.
        """
        self._open()
        while not schedule.is_over(self.moment) and self.stop_reason is None:
            self._turn()
        if self.stop_reason is not None:
            self._stop(self.stop_reason)
        return self.state

    def finish(self) -> State:
        """After the report is written: nothing will be done again."""
        here_s = self.now() - (self.state.opened_at or self.now())
        self._commit([Finished(wall_s=self.state.earlier_s + here_s)])
        return self.state

    def record(self, event: AnyEvent) -> None:
        """Append an event of before this driver's life, whose replay follows."""
        self._patience.persist(lambda: self._append([event]))

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Write files that readers rely on, in this order, while the lease is held."""
        self._patience.persist(lambda: self.publisher.write_all(files))

    def _turn(self) -> None:
        self._commit(list(schedule.decisions(self.moment, self.now())))
        self._submit(self._due())
        self._end_unwanted_training()
        self._look_for_finish_request()
        events = self._commit(self._new_events(POLL_S))
        self.watch(self.moment, events, self.fleet.heartbeats(), self.fleet.waiting_for())

    def _new_events(self, timeout_s: float) -> list[AnyEvent]:
        events, self._unread = self._unread, []
        return events or self._heard(timeout_s)

    def _heard(self, timeout_s: float) -> list[AnyEvent]:
        """New events of the fleet, with the time by this driver's clock."""
        events = self.fleet.events(timeout_s)
        return [event.model_copy(update={"heard_at": self.now()}) for event in events]

    def _wait_for_store(self, pause_s: float, sentence: str) -> None:
        """The fleet works on meanwhile. What it reports is written down once the store works."""
        end = time.monotonic() + pause_s
        while (left_s := end - time.monotonic()) > 0 and self.stop_reason is None:
            began = time.monotonic()
            events = self._heard(min(POLL_S, left_s))
            self._unread += events
            self.watch(self.moment, [], self.fleet.heartbeats(), sentence)
            if not events and time.monotonic() - began < IDLE_S:  # a fleet that does not wait
                time.sleep(min(POLL_S, left_s))

    @property
    def grace_s(self) -> float:
        """Longest wait for the last checkpoints of training that was asked to end: as configured,
        or from the slowest checkpoint so far."""
        configured, measured = self.expanded.experiment.fleet.grace_s, self.state.checkpoint_s
        if configured is not None:
            return configured
        if measured is None:
            return UNKNOWN_GRACE_S
        return max(MIN_GRACE_S, CHECKPOINTS_PER_GRACE * measured)

    # Beginning and ending

    def _open(self) -> None:
        """Recover: record checkpoints that killed attempts finished writing, then reopen all
        orders."""
        self.moment = Moment(
            self.expanded, self._patience.persist(lambda: fold(self.ledger.replay()))
        )
        in_flight = [order for order in self.state.open.values() if order.what == "train"]
        then = {"heard_at": self.state.last_at}
        adopted = [
            event.model_copy(update=then)
            for event in self._patience.persist(
                lambda: [e for o in in_flight for e in self._completed(o.run, o.attempt)]
            )
        ]
        opened = Opened(
            driver=f"{socket.gethostname()}:{os.getpid()}",
            fleet=self.fleet.kind,
            slots=self.fleet.num_slots,
            time=self.now(),
        )
        self._commit([*adopted, opened])
        if self._retry_failed:
            revived = self._commit(list(retry.revivals(self.state, self.now())))
            self.watch(self.moment, revived, [], None)
        if damaged := self._commit(self._damage()):
            self.watch(self.moment, damaged, [], None)

    def _damage(self) -> list[AnyEvent]:
        """What has happened to `soup/` since it was served, and to other files since they were
        written, so that they are made again."""
        problem = self._patience.persist(
            lambda: served_problem(self.store, self.state.served, self.state.soups)
        )
        served = [ServedDamaged(reason=problem, time=self.now())] if problem else []
        others = self._patience.persist(lambda: self._find_damage(self.store, self.state))
        return [*served, *(event.model_copy(update={"time": self.now()}) for event in others)]

    def _stop(self, reason: str) -> None:
        """The ledger is consistent first; then training gets its grace period."""
        self.fleet.interrupt(reason)
        self._commit([Stopped(reason=reason, time=self.now())])
        asked = training = self._training()
        deadline = time.monotonic() + self.grace_s
        while training and time.monotonic() < deadline:
            self._commit(self._new_events(0.1))
            training = self._training()
            if not training <= asked:  # an order that was queued has begun
                self.fleet.interrupt(reason)
                asked |= training

    def _training(self) -> set[str]:
        """Ids of the training orders that run."""
        open_ = self.state.open.items()
        return {id for id, order in open_ if order.what == "train" and order.started_at}

    # Orders

    def _due(self) -> tuple[AnyOrder, ...]:
        """As many orders of each kind as the fleet could possibly take, with the time since when
        each is due: that of one not looked at before is taken to be the earliest possible."""
        most = 2 * self.state.slots + SPARE_ORDERS
        now, orders = self.now(), schedule.due(self.moment, most)
        since = now if self._cut_since is None else self._cut_since
        self._due_since = {order.id: self._due_since.get(order.id, since) for order in orders}
        is_cut = max(Counter(order.kind for order in orders).values(), default=0) >= most
        self._cut_since = since if is_cut else None
        return orders

    def _submit(self, orders: tuple[AnyOrder, ...]) -> None:
        """`ordered` is in the ledger before a fleet hears of it."""
        taken = [order for place in ("merge", "slot") for order in self._affordable(orders, place)]
        attempts = {order.id: self._next_attempt(order) for order in taken}
        self._commit([self._ordered(order, attempts[order.id]) for order in taken])
        for order in taken:
            self.fleet.submit(with_expected_files(self.state, order), attempts[order.id])

    def _affordable(self, orders: tuple[AnyOrder, ...], place: str) -> list[AnyOrder]:
        due = [order for order in orders if order.place == place]
        return due[: self.fleet.capacity(place, len(due))]

    def _next_attempt(self, order: AnyOrder) -> int:
        return self.state.attempts.get(order.run_id or order.id, 0) + 1

    def _ordered(self, order: AnyOrder, attempt: int) -> AnyEvent:
        return Ordered(
            order=order.id,
            run=order.run_id,
            attempt=attempt,
            what=order.kind,
            due_since=self._due_since[order.id],
            time=self.now(),
        )

    # Events

    def _commit(self, events: list[AnyEvent]) -> list[AnyEvent]:
        """Append one group, then apply it; a failed attempt's last checkpoints come with it."""
        current = [event for event in events if not is_stale(self.state, event)]
        fresh = self._patience.persist(lambda: self._published(current))
        group = self._patience.persist(lambda: self._append(fresh))
        state = self.state
        for event in group:
            apply(state, event)
        self.moment = self.moment.later(group)
        return group

    def _published(self, current: list[AnyEvent]) -> list[AnyEvent]:
        """The events, once the files that they announce are in place."""
        self.lease.renew()  # no write of a driver that was replaced may follow
        events = [self.publisher.result(event, self.state.soups) for event in current]
        failed = [event for event in events if event.kind == "failed" and event.run is not None]
        adopted = [e for f in failed for e in self._completed(f.run, f.attempt, beside=events)]
        now = self.now()
        return [
            event if event.heard_at is not None else event.model_copy(update={"heard_at": now})
            for event in (*adopted, *events)
        ]

    def _append(self, events: list[AnyEvent]) -> list[AnyEvent]:
        self.lease.renew()
        return self.ledger.append(events)

    def _completed(
        self, run: str | None, attempt: int | None, beside: list[AnyEvent] | None = None
    ) -> list[AnyEvent]:
        """Complete checkpoints of this attempt (run and EMA) that are in the store but not in the
        ledger."""
        assert run is not None and attempt is not None
        owners = [run, ema_id(run)] if run in self.expanded.runs_with_ema else [run]
        runs = [self.state.run(owner) for owner in owners]
        recorded = {event.checkpoint.id for run_ in runs for event in run_.checkpoints}
        recorded |= {checkpoint.id for run_ in runs for checkpoint in run_.duplicates}
        recorded |= {e.checkpoint.id for e in beside or [] if e.kind == "checkpoint"}
        recorded |= self.state.retired | self.state.corrupt
        return [
            Checkpointed(run=run, attempt=attempt, checkpoint=checkpoint, score=score)
            for owner in owners
            for checkpoint, score in manifest.complete(self.store, owner, attempt)
            if checkpoint.id not in recorded
        ]

    def _end_unwanted_training(self) -> None:
        """Once the experiment is to finish, training gets its grace period and is then cut off."""
        training = [id for id, order in self.state.open.items() if order.what == "train"]
        if self.state.finish_reason is None or not training:
            self._training_ends_at = None
            return
        if self._training_ends_at is None:
            self._training_ends_at = time.monotonic() + self.grace_s
            self.fleet.interrupt(self.state.finish_reason)
        if time.monotonic() >= self._training_ends_at:
            self._cut_off(training)

    def _cut_off(self, training: list[str]) -> None:
        open_ = self.state.open
        for id in training:
            self.fleet.cancel(id)
        adopted = self._patience.persist(
            lambda: [
                event
                for id in training
                for event in self._completed(open_[id].run, open_[id].attempt)
            ]
        )
        cancelled = [
            Cancelled(order=id, run=open_[id].run, attempt=open_[id].attempt) for id in training
        ]
        self._commit([*adopted, *cancelled])

    def _look_for_finish_request(self) -> None:
        if time.monotonic() - self._looked_for_finish_at < FINISH_POLL_S:
            return
        self._looked_for_finish_at = time.monotonic()
        if not self._is_finish_requested():
            return
        if self.state.finish_reason is None:
            self._commit([FinishRequested(reason="soupfleet finish was called", time=self.now())])
        with contextlib.suppress(OSError):  # tried again at the next look
            self.store.delete(FINISH)

    def _is_finish_requested(self) -> bool:
        """False too while the store fails."""
        try:
            return self.store.is_file(FINISH)
        except OSError:
            return False


def refused_reason(state: State) -> str | None:
    """Why the experiment could not begin, in the words of preflight."""
    reason = serving.preflight_refusal(state)
    return None if reason is None else reason.removeprefix("refused: ")
