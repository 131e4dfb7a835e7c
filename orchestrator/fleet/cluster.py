"""The Ray cluster of a fleet: connecting, its device, slots that fit, nodes that are draining."""

import contextlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import ray

from orchestrator.config.sections import FleetConfig
from orchestrator.fleet.address import require_head
from workers.errors import UserError, first_line
from workers.types import WorkerConfig

NODE_LABEL = "ray.io/node-id"
"""The label with a node's id, which Ray gives to every node."""

MAX_STARTS = 3
"""Attempts to start Ray on this machine."""


@dataclass(frozen=True)
class SlotResources:
    """Resources that one slot reserves: `ranks` equal bundles."""

    ranks: int
    cpus: int
    """CPU cores of one rank."""
    gpus: float
    """GPUs of one rank; below 1 for a share."""

    @classmethod
    def of(cls, spec: FleetConfig, worker_config: WorkerConfig) -> "SlotResources":
        """The resources of a slot with this configuration on the device of its workers."""
        gpus = 0.0 if worker_config.device == "cpu" else min(1.0, spec.gpus_per_run)
        return cls(ranks=worker_config.ranks, cpus=spec.cpus_per_run, gpus=gpus)

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one rank, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        gpus = f", {self.ranks * self.gpus:g} GPU" if self.gpus else ""
        return f"each {self.ranks * self.cpus} CPU{gpus}"


def connect(address: str, env: dict[str, str]) -> None:
    """Join the cluster at `address`, or start one on this machine for `local`.

    Raises:
        UserError: nothing answers, or it is a Ray Client address.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"{address} is a Ray Client address, where a driver dies with its connection; use "
            "`soupfleet submit CONFIG --address http://HEAD:8265`, or HOST:PORT from inside"
        )
    if address == "local":
        os.environ.update(env)  # inherited by the processes that Ray starts here
        _start_here()
        return
    require_head(address)
    try:
        ray.init(address=address, runtime_env={"env_vars": env} if env else None, **_QUIET)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at --address {address} ({first_line(error)}); start one with "
            "`ray start --head`"
        ) from error


def _start_here() -> None:
    """Start Ray, several times if need be: on a busy machine its own processes may be too slow."""
    before = set(psutil.Process().children(recursive=True))
    for tries_left in reversed(range(MAX_STARTS)):
        try:
            ray.init(address="local", include_dashboard=False, **_QUIET)
            return
        except Exception as error:
            # Ray raises a bare Exception here, and leaves the processes that did start.
            if "timed out during startup" not in str(error):
                raise
            _end(set(psutil.Process().children(recursive=True)) - before)
            if not tries_left:
                raise UserError(
                    f"Ray could not start on this machine {MAX_STARTS} times in a row; it is too "
                    "busy, so wait for other work to end, or use --fleet local"
                ) from error


def _end(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


_QUIET = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}


def device(spec: FleetConfig) -> Literal["cpu", "cuda"]:
    """Device of all workers: fleet.device, or cuda if it is auto and the cluster has GPUs.

    Raises:
        UserError: the configuration needs more GPUs than the cluster has.
    """
    total = ray.cluster_resources()
    if spec.device == "cpu" or (spec.device == "auto" and spec.gpus_per_run <= 1):
        return "cuda" if spec.device == "auto" and total.get("GPU", 0) else "cpu"
    if total.get("GPU", 0) < spec.gpus_per_run:
        raise UserError(
            f"fleet.gpus_per_run is {spec.gpus_per_run:g}, but the cluster has "
            f"{total.get('GPU', 0):g} GPUs; lower it, add nodes, or set fleet.device=cpu to train "
            "with as many ranks on CPUs"
        )
    return "cuda"


def refuse_infeasible(needs: SlotResources, selector: dict[str, str]) -> None:
    """Refuse a slot that fits no node, for which Ray would wait silently and forever."""
    if capacity(needs, selector) > 0:
        return
    nodes = [_describe(node["Resources"]) for node in _usable_nodes(selector)]
    if not nodes:
        raise UserError(
            f"no node of the cluster has the labels of fleet.label_selector {selector}; give the "
            "nodes these labels, or change it"
        )
    raise UserError(
        f"one run needs {needs.ranks} x {_describe(needs.bundle)} (fleet.cpus_per_run, "
        f"fleet.gpus_per_run), but the nodes of the cluster have {'; '.join(nodes)}; lower these "
        "or add nodes"
    )


def _describe(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"


def capacity(
    needs: SlotResources, selector: dict[str, str], excluded: frozenset[str] = frozenset()
) -> int:
    """Slots that would fit the usable nodes if these were empty."""
    bundles = sum(
        min(
            math.floor(node["Resources"].get(kind, 0) / amount)
            for kind, amount in needs.bundle.items()
        )
        for node in _usable_nodes(selector)
        if node["NodeID"] not in excluded
    )
    return bundles // needs.ranks


def _usable_nodes(selector: dict[str, str]) -> list[dict[str, Any]]:
    """Nodes that are alive, not draining, and have the labels."""
    leaving = draining_nodes()
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
        if all(has_label(node.get("Labels", {}), *label) for label in selector.items())
    ]


def has_label(labels: dict[str, str], key: str, condition: str) -> bool:
    """Whether labels meet a condition in Ray's form: `value`, `!value`, `in(a, b)`, `!in(a, b)`."""
    is_negated, condition = condition.startswith("!"), condition.removeprefix("!")
    values = condition.removeprefix("in(").removesuffix(")") if "(" in condition else condition
    return (labels.get(key) in [value.strip() for value in values.split(",")]) != is_negated


def without_nodes(selector: dict[str, str], excluded: frozenset[str]) -> dict[str, str]:
    """The selector, and none of these nodes."""
    if not excluded:
        return dict(selector)
    return {**selector, NODE_LABEL: f"!in({', '.join(sorted(excluded))})"}


def alive_nodes() -> frozenset[str]:
    """Ids of the nodes that are alive."""
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def node_of(actor: Any) -> str | None:
    """Id of the node that an actor was placed on. None: it was not placed."""
    from ray._private import state

    info = state.actors(actor._actor_id.hex())
    return info.get("Address", {}).get("NodeID") or None


def draining_nodes() -> frozenset[str]:
    """Ids of nodes that will soon stop; none with a version of Ray that lacks this private call."""
    from ray._private import state

    ask = getattr(state.state, "get_draining_nodes", None)
    return frozenset(ask()) if ask is not None else frozenset()
