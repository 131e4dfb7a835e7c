"""The lease: one driver per experiment. `driver.json` says who holds it, and until when.

    local disk     created exclusively, so of two that start together one is refused
    elsewhere,     written, waited, read back: of two that write together the last one wins,
    or taken over  and the other one sees that it did

A lease lapses when it expires, or at once when its owner was a process of this very machine that
is no more. Clocks of machines that drive one experiment should agree within some seconds.
"""

import os
import socket
import time
import uuid
from pathlib import Path

import psutil
from pydantic import ValidationError

from workers.errors import UserError
from workers.storage.layout import LEASE
from workers.storage.store import Store
from workers.types import FrozenModel

TTL_S = 60.0
_CHECK_S = {True: 1.0, False: 5.0}
"""Seconds between looks at the lease on a local disk / elsewhere: how soon a loss is noticed."""
_SETTLE_S = {True: 0.2, False: 1.0}
"""Longer than a rival needs from judging the lease to writing it."""
_SAME_START_S = 3.0
"""psutil's start times of one process differ by as much as the clock was set."""


class LeaseLost(RuntimeError):
    """Another driver took the experiment over; this one must stop without another write."""


class Holder(FrozenModel):
    """Content of `driver.json`."""

    owner: str
    """For people."""
    host: str
    machine: str
    """Hostname, boot and process namespace: where `pid` means what it says."""
    pid: int
    started: float
    """Unix seconds when that process started; tells it from a later one with its pid."""
    token: str
    expires: float
    """Unix seconds."""

    def is_dead(self) -> bool:
        """Its process ran on this very machine, and is gone."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(process.create_time() - self.started) > _SAME_START_S
        except psutil.NoSuchProcess:
            return True

    def has_lapsed(self) -> bool:
        return time.time() > self.expires or self.is_dead()


class Lease:
    """Held from `acquire` to `release`, as long as `renew` is called more often than `ttl_s`."""

    def __init__(self, store: Store, owner: str, ttl_s: float = TTL_S) -> None:
        self.store = store
        self.owner = owner
        self.ttl_s = ttl_s
        self.token = uuid.uuid4().hex
        self._checked_at = 0.0
        """Monotonic time of the last look at the file."""
        self._renewed_at = 0.0

    def acquire(self, take_over: bool = False) -> None:
        """Become the driver, or learn who is.

        Raises:
            UserError: another driver holds the lease, or won it just now.
        """
        if self.store.is_local and self._create():
            return
        held = self._read_twice()
        if held is not None and not take_over and not held.has_lapsed():
            raise UserError(self._refusal(held))
        self._write()
        is_alive = held is not None and not held.has_lapsed()
        # A driver that is being replaced keeps writing until it looks; wait until it must have.
        time.sleep(_SETTLE_S[self.store.is_local] + is_alive * _CHECK_S[self.store.is_local])
        winner = self._read()
        if winner is not None and winner.token != self.token:
            raise UserError(self._refusal(winner))

    def renew(self) -> None:
        """Call often: looks at the file now and then, writes it rarely.

        Raises:
            LeaseLost: another driver holds it.
        """
        now = time.monotonic()
        if now - self._checked_at < min(_CHECK_S[self.store.is_local], self.ttl_s / 10):
            return
        self._checked_at = now
        held = self._read()
        if held is None or held.token != self.token:
            by = "was removed" if held is None else f"is held by {held.owner}"
            raise LeaseLost(f"the lease of {self.store} {by}; this driver stops")
        if now - self._renewed_at > self.ttl_s / 3:
            self._write()

    def release(self) -> None:
        """Let the next driver in; a lease that was taken over is left alone."""
        held = self._read()
        if held is not None and held.token == self.token:
            self.store.delete(LEASE)

    def _create(self) -> bool:
        try:
            self.store.write_new(LEASE, self._text())
        except FileExistsError:
            return False
        self._note_written()
        return True

    def _write(self) -> None:
        self.store.write(LEASE, self._text())
        self._note_written()

    def _note_written(self) -> None:
        self._checked_at = self._renewed_at = time.monotonic()

    def _text(self) -> bytes:
        return (
            Holder(
                owner=self.owner,
                host=socket.gethostname(),
                machine=_machine(),
                pid=os.getpid(),
                started=psutil.Process().create_time(),
                token=self.token,
                expires=time.time() + self.ttl_s,
            )
            .model_dump_json()
            .encode()
        )

    def _read(self) -> Holder | None:
        """Who holds the lease; None if nobody, or if the file cannot be understood."""
        try:
            return Holder.model_validate_json(self.store.read(LEASE))
        except (FileNotFoundError, ValidationError):
            return None

    def _read_twice(self) -> Holder | None:
        """Like `_read`, but gives somebody who is just creating the file the time to fill it."""
        held = self._read()
        if held is None and self.store.exists(LEASE):
            time.sleep(_SETTLE_S[self.store.is_local])
            held = self._read()
        return held

    def _refusal(self, held: Holder) -> str:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held.expires))
        return (
            f"{self.store} is being driven by {held.owner} (process {held.pid} on {held.host}), "
            f"whose lease runs until {until} unless it is renewed; stop that driver, wait, or "
            "add --take-over"
        )


def _machine() -> str:
    """Where a pid is meaningful. Containers may share a hostname, reboots share both names."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [
        socket.gethostname(),
        boot.read_text().strip() if boot.exists() else str(psutil.boot_time()),
        os.readlink(namespace) if namespace.exists() else "",
    ]
    return " ".join(parts)
