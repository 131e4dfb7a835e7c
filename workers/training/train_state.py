"""The state of training besides the weights, as plain tensors and JSON.

    optimizer, moving average, position  <->  TrainState: tensors by name, everything else JSON

A restored run continues byte for byte; nothing is pickled.
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
"""Prefix of a tensor's name in the JSON."""
DTYPE = "dtype:"
"""Prefix of the name of a torch dtype in the JSON."""
AVERAGE = "ema."
"""Prefix of the names of the moving average's tensors."""


@dataclass
class TrainPosition:
    """A run's progress: `step` optimizer steps are done; sums are of the current epoch."""

    step: int
    loss_sum: float = 0.0
    """Sum over steps of mean loss times images, nats."""
    images: int = 0
    history: list[float] = field(default_factory=list)
    """Score of each finished epoch since the run began, for `patience` and `plateau`; higher is
    better."""

    def scores(self, num_epochs: int) -> list[float]:
        """Scores of the last `num_epochs` epochs, or of all if there are fewer."""
        return self.history[-num_epochs:] if num_epochs > 0 else []


def capture(
    model: nn.Module,
    optimizer: Optimizer,
    position: TrainPosition,
    average: nn.Module | None = None,
    **also: Any,
) -> TrainState:
    """The state of training, with the live tensors. `also` is JSON."""
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
    """Load a captured state into a fresh optimizer over the same parameters."""
    tensors = _with_strides(state)
    names = parameter_names(model, optimizer)
    fresh = optimizer.state_dict()["param_groups"]
    groups = [
        {**_from_json(saved, tensors), "params": group["params"]}
        for saved, group in zip(state.scalars["groups"], fresh, strict=True)
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
    """The tensors without those of the moving average."""
    return {name: tensors[name] for name in tensors if not name.startswith(AVERAGE)}


def restore_average(state: TrainState, average: nn.Module) -> None:
    """Load the moving average's tensors."""
    with torch.no_grad():
        for name, tensor in average.state_dict().items():
            tensor.copy_(state.tensors[AVERAGE + name])


def _with_strides(state: TrainState) -> dict[str, Tensor]:
    """The tensors with their original strides: sums and vectorised loops run in memory order, so
    other strides give other bits."""
    strides = state.scalars["strides"]
    return {
        name: torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype).copy_(tensor)
        if name in strides
        else tensor
        for name, tensor in state.tensors.items()
    }


def _restore_dtypes(memory: dict[int, dict[str, Any]], optimizer: Optimizer) -> None:
    """Undo torch's cast of loaded state to the parameter's type; some optimizers use fewer bits."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, saved in memory.items():
        live = optimizer.state.get(parameters[index], {})  # empty in timm's Lookahead
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
