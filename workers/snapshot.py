"""What training must remember beside the weights, as plain tensors and JSON.

    optimizer, position  <->  TrainState: tensors by parameter name, everything else JSON

Restored state continues byte for byte; nothing is pickled.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from workers.checkpoints import TrainState
from workers.optim import parameter_names

TENSOR = "tensor:"
"""Marks, in the JSON, the place of a tensor of this name."""
DTYPE = "dtype:"
"""Marks the name of a torch dtype."""


@dataclass
class Position:
    """Where a run is. `step` optimizer steps are done; the sums belong to the current epoch."""

    step: int
    loss_sum: float = 0.0
    """Of the epoch so far: mean loss of each step times its images, nats."""
    images: int = 0


def take(model: nn.Module, optimizer: Optimizer, position: Position, **also: Any) -> TrainState:
    """The state of training; the tensors are the live ones. `also` is JSON."""
    tensors: dict[str, Tensor] = {}
    names = parameter_names(model, optimizer)
    state = optimizer.state_dict()
    memory = {
        names[index]: _to_json(values, names[index], tensors)
        for index, values in state["state"].items()
    }
    groups = [
        _to_json({k: v for k, v in group.items() if k != "params"}, f"group.{i}", tensors)
        for i, group in enumerate(state["param_groups"])
    ]
    scalars = {"position": asdict(position), "optimizer": memory, "groups": groups, **also}
    return TrainState(tensors=tensors, scalars=scalars)


def give_back(state: TrainState, model: nn.Module, optimizer: Optimizer) -> Position:
    """Put a taken state into a fresh optimizer over the same parameters."""
    names = parameter_names(model, optimizer)
    fresh = optimizer.state_dict()["param_groups"]
    groups = [
        {**_from_json(saved, state.tensors), "params": now["params"]}
        for saved, now in zip(state.scalars["groups"], fresh, strict=True)
    ]
    memory = {
        index: _from_json(state.scalars["optimizer"][name], state.tensors)
        for index, name in enumerate(names)
        if name in state.scalars["optimizer"]
    }
    optimizer.load_state_dict({"state": memory, "param_groups": groups})
    _restore_dtypes(memory, optimizer)
    return Position(**state.scalars["position"])


def _restore_dtypes(memory: dict[int, dict[str, Any]], optimizer: Optimizer) -> None:
    """torch casts what it loads to the parameter's type; some optimizers keep less precision."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in memory.items():
        live = optimizer.state.get(parameters[index], {})  # timm's Lookahead keeps it elsewhere
        for key, value in saved.items():
            if isinstance(value, Tensor) and key in live:
                live[key] = live[key].to(value.dtype)


def _to_json(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor replaced by its name, under which it goes into `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return TENSOR + path
    if isinstance(value, Mapping):
        return {str(k): _to_json(v, f"{path}:{k}", tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v, f"{path}:{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, torch.dtype):
        return DTYPE + str(value).removeprefix("torch.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"optimizer state {path} is a {type(value).__name__}, which JSON cannot hold")


def _from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(TENSOR):
        # A copy: the stored tensor may be a read-only view of a file.
        return torch.clone(tensors[value.removeprefix(TENSOR)])
    if isinstance(value, str) and value.startswith(DTYPE):
        return getattr(torch, value.removeprefix(DTYPE))
    if isinstance(value, dict):
        return {k: _from_json(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
    return value
