"""Ray actors around a WorkerContext: thin shells, one process each.

    perform    one order at a time, events as a stream     (default thread)
    heartbeat  progress while an order is performed        (its own thread)
    interrupt, retract: stop an order, or take back one that has not begun

A rank of a gang is the same actor; only rank 0 yields events.
"""

import os
import socket
import threading
from collections.abc import Iterator

import ray

from workers.context import WorkerContext
from workers.dispatch import perform_safely
from workers.heartbeat import Heartbeat
from workers.types import AnyEvent, AnyOrder, WorkerConfig


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"heartbeat": 1})
class WorkerActor:
    """A worker process. Not restarted by Ray: a new one would lack its memory and process group."""

    def __init__(self, config: WorkerConfig, slot: str, rank: int, ranks: int) -> None:
        self.ranks = ranks
        self.worker = WorkerContext(config, slot=slot, rank=rank)
        self._lock = threading.Lock()
        self._begun: tuple[str, int] | None = None
        """(order, attempt) that was begun last."""
        self._retracted: set[tuple[str, int]] = set()

    def ready(self) -> str:
        """Import what every order needs, so that the first one starts fast; returns the node id."""
        import workers.scoring.forward  # noqa: F401
        import workers.training.train  # noqa: F401

        return str(ray.get_runtime_context().get_node_id())

    @ray.method(num_returns="streaming")
    def perform(
        self, order: AnyOrder, attempt: int, rendezvous: tuple[str, int] | None = None
    ) -> Iterator[AnyEvent]:
        if not self._begin(order.id, attempt):
            return
        if rendezvous is not None:
            os.environ.update(self._gang(*rendezvous))
        yield from perform_safely(self.worker, order, attempt)

    def _begin(self, order: str, attempt: int) -> bool:
        """False: the order was retracted."""
        with self._lock:
            if (order, attempt) in self._retracted:
                self._retracted.discard((order, attempt))
                return False
            self._begun = (order, attempt)
            return True

    @ray.method(concurrency_group="heartbeat")
    def heartbeat(self) -> Heartbeat:
        return self.worker.progress.heartbeat(self.worker.slot)

    @ray.method(concurrency_group="heartbeat")
    def interrupt(self, order: str, reason: str) -> None:
        """Ask training to write a checkpoint and end at its next step, or at its first one."""
        self.worker.progress.ask_to_stop(order, reason)

    @ray.method(concurrency_group="heartbeat")
    def retract(self, order: str, attempt: int) -> bool:
        """Take back an order that waits behind the running one: it yields no event, and another
        worker may have it. False: it has begun."""
        with self._lock:
            if self._begun == (order, attempt):
                return False
            self._retracted.add((order, attempt))
            return True

    @ray.method(concurrency_group="heartbeat")
    def rendezvous(self) -> tuple[str, int]:
        """Address and port on this node for the gang's process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port: int = probe.getsockname()[1]
        return ray.util.get_node_ip_address(), port

    def _gang(self, address: str, port: int) -> dict[str, str]:
        # With plain actors each rank sees exactly its own GPU, so its local index is 0.
        return {
            "RANK": str(self.worker.rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }
