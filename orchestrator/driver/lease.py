"""The lease: one driver per experiment. `driver.json` names the holder and the time of expiry.

    local disk     created exclusively: of two drivers that start together, one is refused
    elsewhere,     written, then read back after a wait: of two drivers that write together,
    or taken over  the last one wins and the other one is refused

A lease lapses when it expires, or at once if its holder was a process of this machine that has
ended. The clocks of machines that drive one experiment should agree within some seconds.
"""

import contextlib
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
"""Validity of a lease after its last renewal."""
_CHECK_S = {True: 1.0, False: 5.0}
"""Seconds between reads of the lease, by whether the store is local; bounds how late a loss is
noticed."""
_SETTLE_S = {True: 0.2, False: 1.0}
"""Seconds, by whether the store is local: longer than another driver takes from reading the lease
to writing it."""
_SAME_START_S = 3.0
"""Tolerance of start times, which psutil shifts when the clock is set."""


class LeaseLost(RuntimeError):
    """Another driver has taken over; this one must stop without another write."""


class Holder(FrozenModel):
    """Content of `driver.json`."""

    owner: str
    """Name of the driver in messages."""
    host: str
    machine: str
    """Hostname, boot and process namespace, within which `pid` is unique."""
    pid: int
    started: float
    """Unix seconds when the process started; distinguishes it from a later one with its pid."""
    token: str
    """Random, unique to a driver."""
    expires: float
    """Unix seconds."""

    def is_dead(self) -> bool:
        """Whether its process ran on this machine and has ended."""
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
    """Held from `acquire` to `release`, if `renew` is called more often than every `ttl_s`."""

    def __init__(self, store: Store, owner: str, ttl_s: float = TTL_S) -> None:
        self.store = store
        self.owner = owner
        self.ttl_s = ttl_s
        self.token = uuid.uuid4().hex
        self._checked_at = 0.0
        """Monotonic time of the last read of the file."""
        self._renewed_at = 0.0
        """Monotonic time of the last write of the file."""

    def acquire(self, take_over: bool = False) -> None:
        """Take the lease; with `take_over`, from a driver that is alive.

        Raises:
            UserError: another driver holds the lease, or acquired it at the same time.
        """
        if self.store.is_local and self._create():
            return
        holder = self._read_twice()
        if holder is not None and not take_over and not holder.has_lapsed():
            raise UserError(self._refusal(holder))
        self._write()
        is_alive = holder is not None and not holder.has_lapsed()
        # The replaced driver writes until it reads the lease again, so wait for that.
        time.sleep(_SETTLE_S[self.store.is_local] + is_alive * _CHECK_S[self.store.is_local])
        winner = self._read()
        if winner is not None and winner.token != self.token:
            raise UserError(self._refusal(winner))

    def renew(self) -> None:
        """Keep the lease. Cheap enough to call often: reads the file sometimes, writes it rarely.

        Raises:
            LeaseLost: another driver holds it, or it was removed.
            OSError: the store fails; whether the lease is still held is unknown.
        """
        now = time.monotonic()
        if now - self._checked_at < min(_CHECK_S[self.store.is_local], self.ttl_s / 10):
            return
        self.check()
        if now - self._renewed_at > self.ttl_s / 3:
            self._renew_late(now)
        self._checked_at = now

    def check(self) -> None:
        """Read the lease now, whenever it was read last.

        Raises:
            LeaseLost: another driver holds it, or it was removed.
        """
        holder = self._read()
        if holder is None or holder.token != self.token:
            loss = "was removed" if holder is None else f"is held by {holder.owner}"
            raise LeaseLost(f"the lease of {self.store} {loss}; this driver stops")

    def keep(self) -> None:
        """Renew the lease from within the work of a local fleet, which knows no answer to a loss:
        the driver finds it at its next write."""
        with contextlib.suppress(LeaseLost, OSError):
            self.renew()

    def release(self) -> None:
        """Give the lease back, unless another driver has taken it over. If the store fails, the
        lease lapses by itself."""
        with contextlib.suppress(OSError):
            holder = self._read()
            if holder is not None and holder.token == self.token:
                self.store.delete(LEASE)

    def _renew_late(self, now: float) -> None:
        """Write the lease. One that had expired may be taken over at this moment, so it is read
        back after a wait."""
        has_expired = now - self._renewed_at > self.ttl_s
        self._write()
        if has_expired:
            time.sleep(_SETTLE_S[self.store.is_local])
            self.check()

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
        """The holder of the lease. None: there is no file, or it is not readable as one."""
        try:
            return Holder.model_validate_json(self.store.read(LEASE))
        except (FileNotFoundError, ValidationError):
            return None
        except IsADirectoryError as error:
            raise UserError(
                f"{LEASE} in {self.store} is a folder, where the name of the driver belongs; "
                "remove or rename it"
            ) from error

    def _read_twice(self) -> Holder | None:
        """Like `_read`, but tries again after a wait if the file is still being written."""
        holder = self._read()
        if holder is None and self.store.exists(LEASE):
            time.sleep(_SETTLE_S[self.store.is_local])
            holder = self._read()
        return holder

    def _refusal(self, holder: Holder) -> str:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.expires))
        return (
            f"{self.store} is being driven by {holder.owner} (process {holder.pid} on "
            f"{holder.host}), whose lease is valid until {until} unless it is renewed; stop that "
            "driver, wait, or add --take-over"
        )


def _machine() -> str:
    """The scope of a pid. The hostname is not enough: containers may share it, and a reboot keeps
    it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [
        socket.gethostname(),
        boot.read_text().strip() if boot.exists() else str(psutil.boot_time()),
        os.readlink(namespace) if namespace.exists() else "",
    ]
    return " ".join(parts)
