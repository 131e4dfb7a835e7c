"""The lease: one of two drivers is refused, and a dead one does not block the next."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.driver.lease import Holder, Lease, LeaseLost
from workers.errors import UserError
from workers.heartbeat import Progress
from workers.storage.layout import LEASE
from workers.storage.store import Store

HOLD = """
import sys, time
from orchestrator.driver.lease import Lease
from workers.storage.store import Store
Lease(Store(sys.argv[1]), "first:1", ttl_s=600).acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder(store: Store) -> Holder:
    return Holder.model_validate_json(store.read(LEASE))


def alter(store: Store, **changes: object) -> None:
    store.write(LEASE, holder(store).model_copy(update=changes).model_dump_json().encode())


def test_a_second_driver_is_refused_with_the_holder_and_a_remedy(store: Store) -> None:
    Lease(store, "first:1").acquire()
    with pytest.raises(UserError, match="first:1.*--take-over"):
        Lease(store, "second:2").acquire()
    assert holder(store).owner == "first:1"
    assert holder(store).pid == os.getpid()
    assert holder(store).host == socket.gethostname()


def test_a_released_lease_is_free(store: Store) -> None:
    first = Lease(store, "first:1")
    first.acquire()
    first.release()
    assert store.list() == []
    Lease(store, "second:2").acquire()


def test_a_replaced_driver_notices_it_and_leaves_the_lease_alone(store: Store) -> None:
    first, second = Lease(store, "first:1", ttl_s=1), Lease(store, "second:2")
    first.acquire()
    second.acquire(take_over=True)
    with pytest.raises(LeaseLost, match="second:2"):
        first.renew()
    first.release()
    assert holder(store).token == second.token


def test_a_removed_lease_is_lost(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    lease = Lease(store, "first:1", ttl_s=0.1)
    lease.acquire()
    store.delete(LEASE)
    time.sleep(0.05)
    with pytest.raises(LeaseLost, match="removed"):
        lease.renew()


def test_renewing_postpones_the_end_but_writes_rarely(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    lease = Lease(store, "first:1", ttl_s=1.5)
    lease.acquire()
    first = holder(store).expires
    expiries = set()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        lease.renew()
        expiries.add(holder(store).expires)
        time.sleep(0.01)
    assert 2 <= len(expiries) <= 5
    assert max(expiries) > first + 1
    with pytest.raises(UserError):
        Lease(store, "second:2").acquire()


def test_an_expired_lease_is_free(store: Store) -> None:
    Lease(store, "first:1").acquire()
    alter(store, expires=time.time() - 1)
    Lease(store, "second:2").acquire()
    assert holder(store).owner == "second:2"


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="first:1"):
            Lease(store, "second:2").acquire()
        first.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not holder(store).is_dead() and time.monotonic() < deadline:
            time.sleep(0.01)  # not reaped yet: a zombie counts as dead
        Lease(store, "second:2").acquire()
    assert holder(store).owner == "second:2"


def test_a_later_process_with_the_same_pid_does_not_hold_the_lease(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Lease(store, "first:1").acquire()
    alter(store, started=holder(store).started - 3600)
    Lease(store, "second:2").acquire()


def test_the_pid_of_another_machine_is_ignored(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    Lease(store, "first:1").acquire()
    alter(store, machine="elsewhere", started=0.0)
    with pytest.raises(UserError, match="first:1"):
        Lease(store, "second:2").acquire()


@pytest.mark.parametrize("text", [b"", b'{"owner":', b"garbage"])
def test_a_torn_lease_file_is_free(tmp_path: Path, text: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(LEASE, text)
    Lease(store, "second:2").acquire()
    assert holder(store).owner == "second:2"


RACE = """
import sys
from orchestrator.driver.lease import Lease
from workers.storage.store import Store
from workers.errors import UserError
store = Store(sys.argv[1])
sys.stdin.readline()
try:
    Lease(store, "driver").acquire()
except UserError:
    print("refused", flush=True)
else:
    print("won", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("stale", [False, True])
def test_exactly_one_of_several_drivers_that_start_together_wins(
    tmp_path: Path, stale: bool
) -> None:
    if stale:
        Lease(Store(str(tmp_path)), "first:1").acquire()
        alter(Store(str(tmp_path)), expires=0.0)
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipe = subprocess.PIPE
    rivals = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    time.sleep(2)  # until all of them have imported their modules
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    answers = [rival.stdout.readline() for rival in rivals if rival.stdout is not None]
    for rival in rivals:
        rival.communicate("end\n")
    assert sorted(answers) == ["refused\n", "refused\n", "won\n"]


def test_the_progress_of_a_local_fleet_keeps_the_lease_and_silence_does_not(
    tmp_path: Path,
) -> None:
    store, progress = Store(str(tmp_path)), Progress()
    lease = Lease(store, owner="local", ttl_s=0.3)
    lease.acquire()
    progress.on_touch = lease.keep
    for _ in range(12):
        time.sleep(0.05)
        progress.touch(step=1)
    assert holder(store).expires > time.time()
    time.sleep(0.4)
    assert holder(store).has_lapsed()
    Lease(store, owner="other host").acquire()
    progress.touch(step=2)  # the work goes on; the driver finds the loss at its next write
    assert holder(store).owner == "other host"
    with pytest.raises(LeaseLost, match="other host"):
        lease.check()
