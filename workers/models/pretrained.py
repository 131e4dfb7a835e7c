"""Weights: from files and from timm into a live model; refused before anything is copied.

file or published weights -> timm's filter of the architecture -> all of the model but its head
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workers.config.model import ModelConfig
from workers.errors import UserError, first_line
from workers.models.heads import in_head, timm_entrypoint, weight_filter

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
"""Of files that `model.checkpoint` may name."""
TIMM_ERRORS = (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError)
"""What timm raises for arguments, sizes or weights that an architecture does not take."""
WEIGHT_READ_ERRORS = (*TIMM_ERRORS, SafetensorError, EOFError, OSError, IndexError, struct.error)
"""What safetensors and torch's restricted unpickler raise for bytes that are no weights."""


def load_initial(model: nn.Module, spec: ModelConfig) -> None:
    """Copy the weights that `spec` starts from into all of `model` but its head.

    Position embeddings are resampled where timm does that for the architecture. A spec with
    neither `pretrained` nor `checkpoint` leaves the model as it is. Raises UserError for a file
    that cannot be read without running code, or that is of another architecture.
    """
    if spec.pretrained:
        _copy_backbone(model, _pretrained(model, spec), f"timm's weights of {spec.name}")
    elif spec.checkpoint:
        weights = _filtered_by_timm(model, read_weights(spec.checkpoint), spec)
        _copy_backbone(model, weights, f"model.checkpoint {spec.checkpoint}")


def load_head(model: nn.Module, spec: ModelConfig) -> None:
    """Copy the head of `spec.checkpoint` too, where all its tensors fit; else leave it as it is."""
    if spec.checkpoint is None:
        raise UserError("base.init is checkpoint, but model.checkpoint is absent; name a file")
    found = read_weights(spec.checkpoint)
    head = {name: t for name, t in model.state_dict().items() if in_head(model, name)}
    if all(name in found and found[name].shape == t.shape for name, t in head.items()):
        with torch.no_grad():
            for name, tensor in head.items():
                tensor.copy_(found[name])


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy every tensor into the live model. Raises UserError naming the first that is missing,
    of another shape, or too many."""
    live = model.state_dict()
    refuse_mismatch(live, weights, source)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(weights[name])


def _pretrained(model: nn.Module, spec: ModelConfig) -> dict[str, Tensor]:
    """Those of the backbone, as timm publishes them, from a network without a head of ours."""
    overlay = spec.kwargs.get("pretrained_cfg_overlay")
    _, head = timm_entrypoint(spec)
    every: dict[str, Any] = model._model_args  # type: ignore[assignment]
    arguments = {key: value for key, value in every.items() if key not in head}
    try:
        donor = timm.create_model(
            spec.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"timm's published weights of {spec.name} cannot be had: {first_line(error)}; set "
            "model.pretrained=false, or model.checkpoint to a file of weights"
        ) from error
    # Its fresh modules were drawn just now, from nobody's seed.
    return {n: t for n, t in donor.state_dict().items() if not _is_fresh(model, n)}


def read_weights(
    path: str, setting: str = "model.checkpoint", use_ema: bool = True
) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` or a torch file, through timm's allow-listed loader, which
    also takes off `state_dict` and `model` wrappers and `module.` and `_orig_mod.` prefixes.

    `use_ema` takes the averaged weights (`state_dict_ema`, `model_ema`) where there are any.
    Raises UserError, beginning with `setting`, for a file that is absent, broken, of another kind,
    or that would have to unpickle anything but tensors.
    """
    file = Path(path).expanduser()
    said = f"{setting} {file}"
    if not file.is_file():
        raise UserError(f"{said} is not a file; give the path of the weights")
    if file.suffix not in WEIGHT_SUFFIXES:
        raise UserError(f"{said} is neither .safetensors nor .pth; convert it to one of them")
    try:
        loaded: Any = timm.models.load_state_dict(str(file), use_ema=use_ema, weights_only=True)
    except WEIGHT_READ_ERRORS as error:
        raise UserError(_read_error(said, error)) from error
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{said} holds no tensors; give a file of weights")
    return tensors


def _read_error(said: str, error: BaseException) -> str:
    if "weights_only" in str(error):
        return (
            f"{said} needs unpickling, which could run code, and was not opened; save its state "
            "dict as .safetensors"
        )
    return f"{said} cannot be read as weights ({first_line(error)}); save it again"


def _filtered_by_timm(
    model: nn.Module, weights: dict[str, Tensor], spec: ModelConfig
) -> Mapping[str, Tensor]:
    """Through timm's own filter of the architecture."""
    filter_weights = weight_filter(spec.name)
    if filter_weights is None:
        return weights
    try:
        return filter_weights(weights, model)
    except (*TIMM_ERRORS, IndexError) as error:
        raise UserError(
            f"model.checkpoint {spec.checkpoint} does not hold weights of {spec.name} "
            f"({first_line(error)}); give the weights of this architecture"
        ) from error


def _copy_backbone(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    live = {name: t for name, t in model.state_dict().items() if not in_head(model, name)}
    weights = _with_norm_before_pooling(live, weights)
    weights = {name: tensor for name, tensor in weights.items() if not in_head(model, name)}
    if not any(_is_fresh(model, name) for name in weights):
        live = {name: tensor for name, tensor in live.items() if not _is_fresh(model, name)}
    # Converted weights often lack the counter; nothing here reads it.
    counters = {n: t for n, t in live.items() if n.endswith("num_batches_tracked")}
    weights = counters | weights
    refuse_mismatch(live, weights, source)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(weights[name])


def _is_fresh(model: nn.Module, name: str) -> bool:
    """Whether it lies in what a hybrid adds to the network whose checkpoints it loads."""
    modules: tuple[str, ...] = getattr(model, "soupfleet_fresh", ())
    return name.startswith(tuple(f"{module}." for module in modules))


def _with_norm_before_pooling(
    live: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """timm normalises tokens after averaging them, but before pooling them by attention; it is the
    same layer under another name."""
    if "norm.weight" not in live or "norm.weight" in weights or "fc_norm.weight" not in weights:
        return weights
    return {
        "norm." + name.removeprefix("fc_norm.") if name.startswith("fc_norm.") else name: tensor
        for name, tensor in weights.items()
    }


def refuse_mismatch(live: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError for the first tensor that is missing, of another shape, or too many."""
    remedy = "give weights of the same architecture and model.kwargs"
    for name, tensor in live.items():
        if name not in weights:
            shape = list(tensor.shape)
            raise UserError(f"{source} has no tensor {name}, of shape {shape} in model; {remedy}")
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{source}: tensor {name} has shape {list(weights[name].shape)}, the model's "
                f"has {list(tensor.shape)}; {remedy}"
            )
    if extra := next((name for name in weights if name not in live), None):
        shape = list(weights[extra].shape)
        raise UserError(f"{source} has a tensor {extra}, of shape {shape}, not in model; {remedy}")
