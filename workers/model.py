"""Model: the door to timm's architectures, their weights, heads and configuration.

ModelSpec -> create_model -> load_initial (head dropped) -> init_head -> the base
                  |-> preprocessing, timm_config
"""

import difflib
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workers.spec import DataSpec, ModelSpec
from workers.types import UserError

OURS = {"num_classes", "pretrained", "checkpoint_path", "features_only", "pretrained_cfg"}
"""Arguments of timm.create_model that have their own place in the configuration."""
SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"}
"""Where a pretrained_cfg says weights come from; meaningless for weights of our own."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
"""Of files that `model.checkpoint` may name."""
REFUSALS = (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError)
"""What timm raises for arguments, sizes or weights that an architecture does not take."""
UNREADABLE = (*REFUSALS, SafetensorError, EOFError, OSError, IndexError, struct.error)
"""What safetensors and torch's restricted unpickler raise for bytes that are no weights."""


def create_model(
    spec: ModelSpec, num_classes: int, data: DataSpec, drop_path: float = 0.0
) -> nn.Module:
    """timm's module with a head for `num_classes`, freshly initialised from torch's global
    generator; nothing is downloaded. Raises UserError for what timm does not know or take."""
    _refuse_unknown(spec.name)
    if taken := OURS & spec.kwargs.keys():
        raise UserError(f"model.kwargs: {min(taken)} is set by soupfleet; remove it")
    kwargs = {**spec.kwargs, **_img_size(spec, data)}
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    try:
        model: nn.Module = timm.create_model(spec.name, num_classes=num_classes, **kwargs)
    except REFUSALS as error:
        raise UserError(
            f"model {spec.name} cannot be built with {kwargs}: {_first_line(error)}; "
            "change model.kwargs, data.image_size or train.drop_path"
        ) from error
    if not head_parameter_names(model):
        raise UserError(f"model {spec.name} has no classifier to train; choose another model.name")
    return model


def preprocessing(model: nn.Module, data: DataSpec) -> dict[str, Any]:
    """timm's `resolve_model_data_config`, with data.image_size and data.crop_pct, as plain JSON:
    input_size, interpolation, mean, std, crop_pct, crop_mode."""
    config = resolve_model_data_config(
        model, args={"img_size": data.image_size, "crop_pct": data.crop_pct}
    )
    if config["input_size"][0] != 3:
        raise UserError(
            f"the model takes {config['input_size'][0]} channels, images have 3; remove in_chans "
            "from model.kwargs"
        )
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


def load_initial(model: nn.Module, spec: ModelSpec) -> None:
    """Copy the weights that `spec` starts from into all of `model` but its head.

    Position embeddings are resampled where timm does that for the architecture. A spec with
    neither `pretrained` nor `checkpoint` leaves the model as it is. Raises UserError for a file
    that cannot be read without running code, or that is of another architecture.
    """
    if spec.pretrained:
        _copy_backbone(model, _pretrained(model, spec), f"timm's weights of {spec.name}")
    elif spec.checkpoint:
        weights = _translated(model, _read_weights(spec.checkpoint), spec)
        _copy_backbone(model, weights, f"model.checkpoint {spec.checkpoint}")


def init_head(model: nn.Module, how: Literal["zero", "timm"], seed: int) -> None:
    """Classifier parameters: all zeros, or as timm initialises them after `seed`.

    A zero head starts all classes equal; timm's large initial MobileNetV2 head cost 15 points
    of two-epoch accuracy on PACS.
    """
    fresh = _fresh_like(model, seed) if how == "timm" else None
    with torch.no_grad():
        for name in head_parameter_names(model):
            parameter = model.get_parameter(name)
            parameter.copy_(fresh.get_parameter(name)) if fresh else parameter.zero_()


def head_parameter_names(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters, of all classifiers of a model that has several."""
    return {name for name, _ in model.named_parameters() if _is_head(model, name)}


def has_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def timm_config(
    model: nn.Module, spec: ModelSpec, classes: tuple[str, ...], data: DataSpec
) -> dict[str, Any]:
    """config.json beside model.safetensors, with which `timm.create_model("local-dir:...",
    pretrained=True)` rebuilds the model, its preprocessing and its label names."""
    source: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    size_bound = SOURCES | {"test_input_size", "test_crop_pct", "label_offset", "pool_size", "tag"}
    config = {key: value for key, value in source.items() if key not in size_bound}
    config |= preprocessing(model, data) | {"num_classes": len(classes), "custom_load": False}
    args = {key: v for key, v in spec.kwargs.items() if key != "pretrained_cfg_overlay"}
    return {
        "architecture": source["architecture"],
        "num_classes": len(classes),
        "num_features": getattr(model, "num_features", None),
        "label_names": list(classes),
        "model_args": args | _img_size(spec, data),
        "pretrained_cfg": config,
    }


def open_served(folder: Path) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """(network in eval mode, its evaluation preprocessing, label names) of a folder that plain timm
    loads, such as a served soup/. Raises UserError for a folder that is not one."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}, so it is no model; give a served folder, as in "
                "runs/quickstart/soup"
            )
    try:
        model = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True)
    except UNREADABLE as error:
        raise UserError(
            f"the model in {folder} cannot be loaded ({_first_line(error)}); copy or make it again"
        ) from error
    config: dict[str, Any] = model.pretrained_cfg
    labels = tuple(config.get("label_names") or ())
    if len(labels) != model.num_classes:
        raise UserError(
            f"{folder}/config.json names {len(labels)} labels for {model.num_classes} outputs; "
            "write label_names, one for each output, into it"
        )
    return model.eval(), preprocessing(model, DataSpec()), labels


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy every tensor into the live model. Raises UserError naming the first that is missing,
    of another shape, or too many."""
    live = model.state_dict()
    _refuse_mismatch(live, weights, source)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(weights[name])


def _refuse_unknown(name: str) -> None:
    known = timm.list_models()
    architecture, _, tag = name.partition(".")
    if architecture in known:
        return _refuse_unknown_tag(architecture, tag)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else "see timm.list_models()"
    raise UserError(f"model.name: timm has no model {name!r}; {hint}")


def _refuse_unknown_tag(architecture: str, tag: str) -> None:
    published = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and f"{architecture}.{tag}" not in published:
        raise UserError(
            f"model.name: timm has no weights {tag!r} of {architecture}; "
            f"there are {', '.join(published) or 'none'}"
        )


def _img_size(spec: ModelSpec, data: DataSpec) -> dict[str, int]:
    """The argument that tells a network of fixed input size about data.image_size."""
    if data.image_size is None:
        return {}
    config = timm.models.get_pretrained_cfg(spec.name, allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size
    return {"img_size": data.image_size} if fixed or "img_size" in spec.kwargs else {}


def _is_head(model: nn.Module, name: str) -> bool:
    classifier: Any = model.pretrained_cfg["classifier"]  # type: ignore[index]
    modules = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return name.startswith(tuple(f"{module}." for module in modules))


def _pretrained(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    overlay = spec.kwargs.get("pretrained_cfg_overlay")
    arguments: dict[str, Any] = model._model_args  # type: ignore[assignment]
    try:
        donor = timm.create_model(
            spec.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"timm's published weights of {spec.name} cannot be had: {_first_line(error)}; set "
            "model.pretrained=false, or model.checkpoint to a file of weights"
        ) from error
    weights: dict[str, Tensor] = donor.state_dict()
    return weights


def _read_weights(path: str) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` or a torch file, through timm's allow-listed loader.

    Raises UserError for a file that is absent, broken, of another kind, or that would have to
    unpickle anything but tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"model.checkpoint {file} is not a file; give the path of the weights")
    if file.suffix not in SUFFIXES:
        raise UserError(
            f"model.checkpoint {file} is neither .safetensors nor .pth; convert it to one of them"
        )
    try:
        loaded: Any = timm.models.load_state_dict(str(file), weights_only=True)
    except UNREADABLE as error:
        raise UserError(_refusal(file, error)) from error
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"model.checkpoint {file} holds no tensors; give a file of weights")
    return tensors


def _refusal(file: Path, error: BaseException) -> str:
    if "weights_only" in str(error):
        return (
            f"model.checkpoint {file} needs unpickling, which could run code, and was not opened; "
            "save its state dict as .safetensors"
        )
    reason = _first_line(error)
    return f"model.checkpoint {file} cannot be read as weights ({reason}); save it again"


def _translated(
    model: nn.Module, weights: dict[str, Tensor], spec: ModelSpec
) -> Mapping[str, Tensor]:
    """Through timm's own filter of the architecture, which renames old keys and resamples
    position and patch embeddings; many architectures need none."""
    entrypoint = timm.models.model_entrypoint(spec.name.partition(".")[0])
    filter_weights = getattr(sys.modules[entrypoint.__module__], "checkpoint_filter_fn", None)
    if filter_weights is None:
        return weights
    try:
        translated: dict[str, Tensor] = filter_weights(weights, model)
    except (*REFUSALS, IndexError) as error:
        raise UserError(
            f"model.checkpoint {spec.checkpoint} does not hold weights of {spec.name} "
            f"({_first_line(error)}); give the weights of this architecture"
        ) from error
    return translated


def _copy_backbone(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    live = {name: t for name, t in model.state_dict().items() if not _is_head(model, name)}
    weights = {name: tensor for name, tensor in weights.items() if not _is_head(model, name)}
    # Converted weights often lack the counter; nothing here reads it.
    counters = {n: t for n, t in live.items() if n.endswith("num_batches_tracked")}
    weights = counters | weights
    _refuse_mismatch(live, weights, source)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(weights[name])


def _refuse_mismatch(
    live: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str
) -> None:
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


def _fresh_like(model: nn.Module, seed: int) -> nn.Module:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    arguments: dict[str, Any] = model._model_args  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: nn.Module = timm.create_model(
            config["architecture"], pretrained_cfg=config, **arguments
        )
    return fresh


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
