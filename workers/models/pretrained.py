"""Initial weights from files and from timm. They are checked before anything is copied.

file or published weights -> timm's filter of the architecture -> the model without its head
"""

import struct
from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workers.config.model import ModelConfig
from workers.errors import UserError, first_line
from workers.models.heads import in_head, timm_entrypoint, weight_filter
from workers.storage.local_disk import expanded

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
"""Suffixes of files of weights."""
TIMM_ERRORS = (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError)
"""Errors of timm for arguments, sizes or weights that do not fit an architecture."""
WEIGHT_READ_ERRORS = (*TIMM_ERRORS, SafetensorError, EOFError, OSError, IndexError, struct.error)
"""Errors of safetensors and torch's restricted unpickler for bytes that are no weights."""


def load_initial(model: nn.Module, spec: ModelConfig) -> None:
    """Copy the weights that `spec` starts from into `model`, except for its head.

    timm's filter resamples position embeddings. Without `pretrained` and `checkpoint` the model
    stays as it is. Raises UserError for a file that cannot be read without running code, or that
    has weights of another architecture.
    """
    if spec.pretrained:
        _copy_backbone(model, _pretrained(model, spec), f"timm's weights of {spec.name}")
    elif spec.checkpoint:
        weights = _filtered_by_timm(model, read_weights(spec.checkpoint), spec)
        _copy_backbone(model, weights, f"model.checkpoint {spec.checkpoint}")


def load_head(model: nn.Module, spec: ModelConfig) -> None:
    """Copy the head of `spec.checkpoint` if all its tensors fit."""
    if spec.checkpoint is None:
        raise UserError("base.init is checkpoint, but model.checkpoint is absent; name a file")
    weights = read_weights(spec.checkpoint)
    head = {name: t for name, t in model.state_dict().items() if in_head(model, name)}
    if all(name in weights and weights[name].shape == t.shape for name, t in head.items()):
        with torch.no_grad():
            for name, tensor in head.items():
                tensor.copy_(weights[name])


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy all tensors into the model.

    Raises UserError for the first tensor that is missing, unknown, or of another shape.
    """
    live = model.state_dict()
    refuse_mismatch(live, weights, source)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(weights[name])


def _pretrained(model: nn.Module, spec: ModelConfig) -> dict[str, Tensor]:
    """The weights that timm publishes for the backbone, from a network without our head."""
    overlay = spec.kwargs.get("pretrained_cfg_overlay")
    _, head = timm_entrypoint(spec)
    model_args: dict[str, Any] = model._model_args  # type: ignore[assignment]
    arguments = {key: value for key, value in model_args.items() if key not in head}
    try:
        donor = timm.create_model(
            spec.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"timm's published weights of {spec.name} cannot be loaded: {first_line(error)}; set "
            "model.pretrained=false, or model.checkpoint to a file of weights"
        ) from error
    # Fresh modules of the donor do not depend on the seed, so they are left out.
    return {n: t for n, t in donor.state_dict().items() if not _is_fresh(model, n)}


def read_weights(
    path: str, setting: str = "model.checkpoint", use_ema: bool = True
) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` or torch file, by timm's loader, which runs no code.

    The loader also removes `state_dict` and `model` wrappers and `module.` and `_orig_mod.`
    prefixes. `use_ema` takes averaged weights (`state_dict_ema`, `model_ema`) if there are any.
    Raises UserError, starting with `setting`, for a file that is missing, broken, of another kind,
    or that has pickled objects other than tensors.
    """
    file = expanded(path)
    place = f"{setting} {file}"
    if not file.is_file():
        raise UserError(f"{place} is not a file; give the path of the weights")
    if file.suffix not in WEIGHT_SUFFIXES:
        raise UserError(f"{place} is neither .safetensors nor .pth; convert it to one of them")
    try:
        loaded: Any = timm.models.load_state_dict(str(file), use_ema=use_ema, weights_only=True)
    except WEIGHT_READ_ERRORS as error:
        raise UserError(_read_error(place, error)) from error
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{place} holds no tensors; give a file of weights")
    return tensors


def _read_error(place: str, error: BaseException) -> str:
    if "weights_only" in str(error):
        return (
            f"{place} needs unpickling, which could run code, and was not opened; save its state "
            "dict as .safetensors"
        )
    return f"{place} cannot be read as weights ({first_line(error)}); save it again"


def _filtered_by_timm(
    model: nn.Module, weights: dict[str, Tensor], spec: ModelConfig
) -> Mapping[str, Tensor]:
    """The weights after timm's filter of the architecture."""
    filter_weights = weight_filter(spec.name)
    if filter_weights is None:
        return weights
    try:
        return filter_weights(weights, model)
    except (*TIMM_ERRORS, IndexError) as error:
        raise UserError(
            f"model.checkpoint {spec.checkpoint} has no weights of {spec.name} "
            f"({first_line(error)}); give the weights of this architecture"
        ) from error


def _copy_backbone(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    live = {name: t for name, t in model.state_dict().items() if not in_head(model, name)}
    weights = _with_norm_before_pooling(live, weights)
    weights = {name: tensor for name, tensor in weights.items() if not in_head(model, name)}
    if not any(_is_fresh(model, name) for name in weights):
        live = {name: tensor for name, tensor in live.items() if not _is_fresh(model, name)}
    # Converted weights often lack the counter, which is not used here.
    counters = {n: t for n, t in live.items() if n.endswith("num_batches_tracked")}
    weights = counters | weights
    refuse_mismatch(live, weights, source)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(weights[name])


def _is_fresh(model: nn.Module, name: str) -> bool:
    """Whether the tensor belongs to a module that a hybrid adds to the plain network."""
    modules: tuple[str, ...] = getattr(model, "soupfleet_fresh", ())
    return name.startswith(tuple(f"{module}." for module in modules))


def _with_norm_before_pooling(
    live: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Rename `fc_norm` to `norm` if the model has only the latter.

    It is the same layer: timm applies it after averaging tokens, but before attention pooling.
    """
    if "norm.weight" not in live or "norm.weight" in weights or "fc_norm.weight" not in weights:
        return weights
    return {
        "norm." + name.removeprefix("fc_norm.") if name.startswith("fc_norm.") else name: tensor
        for name, tensor in weights.items()
    }


def refuse_mismatch(live: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError for the first tensor that is missing, unknown, or of another shape."""
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
