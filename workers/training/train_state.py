"""What training must remember beside the weights, as plain tensors and JSON.

    optimizer, moving average, position  <->  TrainState: tensors by name, everything else JSON

Restored state continues byte for byte; nothing is pickled.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from workers.storage.checkpoints import TrainState
from workers.training.optim import parameter_names

TENSOR = "tensor:"
"""Marks, in the JSON, the place of a tensor of this name."""
DTYPE = "dtype:"
"""Marks the name of a torch dtype."""
AVERAGE = "ema."
"""Begins the names of the moving average's tensors."""


@dataclass
class TrainPosition:
    """Where a run is. `step` optimizer steps are done; the sums belong to the current epoch."""

    step: int
    loss_sum: float = 0.0
    """Of the epoch so far: mean loss of each step times its images, nats."""
    images: int = 0
    history: list[float] = field(default_factory=list)
    """Score of each finished epoch since the run began; higher is better. What `patience` and
    `plateau` look at."""

    def scores(self, num_epochs: int) -> list[float]:
        """Of the last so many epochs, as far as they are known."""
        return self.history[-num_epochs:] if num_epochs > 0 else []


def capture(
    model: nn.Module,
    optimizer: Optimizer,
    position: TrainPosition,
    average: nn.Module | None = None,
    **also: Any,
) -> TrainState:
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
    strides = {n: list(t.stride()) for n, t in tensors.items() if not t.is_contiguous()}
    scalars = {
        "position": asdict(position),
        "optimizer": memory,
        "groups": groups,
        "strides": strides,
        **also,
    }
    averaged = average.state_dict() if average is not None else {}
    tensors |= {AVERAGE + name: tensor for name, tensor in averaged.items()}
    return TrainState(tensors=tensors, scalars=scalars)


def position_of(state: TrainState) -> TrainPosition:
    return TrainPosition(**state.scalars["position"])


def restore_optimizer(state: TrainState, model: nn.Module, optimizer: Optimizer) -> TrainPosition:
    """Put a taken state into a fresh optimizer over the same parameters."""
    tensors = _as_they_lay(state)
    names = parameter_names(model, optimizer)
    fresh = optimizer.state_dict()["param_groups"]
    groups = [
        {**_from_json(saved, tensors), "params": now["params"]}
        for saved, now in zip(state.scalars["groups"], fresh, strict=True)
    ]
    memory = {
        index: _from_json(state.scalars["optimizer"][name], tensors)
        for index, name in enumerate(names)
        if name in state.scalars["optimizer"]
    }
    optimizer.load_state_dict({"state": memory, "param_groups": groups})
    _restore_dtypes(memory, optimizer)
    return position_of(state)


def optimizer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those of the moving average."""
    return {name: tensors[name] for name in tensors if not name.startswith(AVERAGE)}


def restore_average(state: TrainState, average: nn.Module) -> None:
    """Put the moving average's tensors back."""
    with torch.no_grad():
        for name, tensor in average.state_dict().items():
            tensor.copy_(state.tensors[AVERAGE + name])


def _as_they_lay(state: TrainState) -> dict[str, Tensor]:
    """The tensors with the strides they had: sums and vectorised loops run in memory's order, so
    that the same numbers lying otherwise end in other bits."""
    strides = state.scalars["strides"]
    return {
        name: torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype).copy_(tensor)
        if name in strides
        else tensor
        for name, tensor in state.tensors.items()
    }


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
