"""Models of timm: architecture, initial head, preprocessing and configuration.

ModelConfig -> create_model -> load_initial (head dropped) -> init_head -> the base
                  |-> preprocessing, timm_config

Importing this file registers the project's own architectures, soupfleet_*, with timm.
"""

from typing import Any, Literal

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import workers.models.resnext_vit  # noqa: F401  (registers)
from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.errors import UserError, did_you_mean, first_line
from workers.models.heads import in_classifier, in_head, mark_head, timm_entrypoint
from workers.models.pretrained import TIMM_ERRORS, assign_weights, load_initial

__all__ = [
    "assign_weights",
    "create_model",
    "has_batchnorm",
    "head_parameter_names",
    "init_head",
    "load_initial",
    "preprocessing",
    "timm_config",
]

RESERVED_KWARGS = {
    "num_classes",
    "pretrained",
    "checkpoint_path",
    "features_only",
    "pretrained_cfg",
}
"""Arguments of timm.create_model that other keys of the configuration set."""
HEAD_ENTRYPOINTS = {"soupfleet_se": "se", "soupfleet_attention": "attention"}
"""Entrypoint of timm -> value of `model.head` that uses it."""
WEIGHT_SOURCE_KEYS = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"}
"""Keys of a pretrained_cfg that name the origin of weights, which our weights do not have."""


def create_model(
    spec: ModelConfig, num_classes: int, data: DataConfig, drop_path: float = 0.0
) -> nn.Module:
    """timm's module with a head for `num_classes`, initialised from torch's global generator.

    Nothing is downloaded. Raises UserError for names and arguments that timm does not have.
    """
    _refuse_unknown(spec.name)
    _refuse_reserved(spec)
    name, head = timm_entrypoint(spec)
    kwargs = {**spec.kwargs, **_img_size(spec, data)}
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    try:
        model: nn.Module = timm.create_model(name, num_classes=num_classes, **kwargs, **head)
    except UserError:
        raise
    except TIMM_ERRORS as error:
        raise UserError(
            f"model {spec.name} cannot be built with {kwargs}: {first_line(error)}; "
            "change model.head, model.kwargs, data.image_size or train.drop_path"
        ) from error
    mark_head(model, spec)
    if not any(in_classifier(model, name) for name, _ in model.named_parameters()):
        raise UserError(f"model {spec.name} has no classifier to train; choose another model.name")
    return model


def preprocessing(model: nn.Module, data: DataConfig) -> dict[str, Any]:
    """timm's `resolve_model_data_config` with data.image_size and data.crop_pct, as plain JSON.

    Keys: input_size, interpolation, mean, std, crop_pct, crop_mode.
    """
    config = resolve_model_data_config(
        model, args={"img_size": data.image_size, "crop_pct": data.crop_pct}
    )
    if config["input_size"][0] != 3:
        raise UserError(
            f"the model takes {config['input_size'][0]} channels, images have 3; remove in_chans "
            "from model.kwargs"
        )
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


def init_head(model: nn.Module, how: Literal["zero", "timm"], seed: int) -> None:
    """Initialise the head as timm does after `seed`. `how` zero: the classifier is all zeros.

    With a zero classifier all classes start equal; timm's large initial MobileNetV2 head cost 15
    points of two-epoch accuracy on PACS. Only the classifier, because layers before it could not
    learn from zeros.
    """
    names = head_parameter_names(model)
    zeros = {name for name in names if how == "zero" and in_classifier(model, name)}
    fresh = _freshly_initialised(model, seed) if zeros != names else None
    with torch.no_grad():
        for name in names:
            parameter = model.get_parameter(name)
            if name in zeros or fresh is None:
                parameter.zero_()
            else:
                parameter.copy_(fresh.get_parameter(name))


def head_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters of all classifiers, and of the layers that `model.head` adds."""
    return {name for name, _ in model.named_parameters() if in_head(model, name)}


def has_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def timm_config(
    model: nn.Module, spec: ModelConfig, classes: tuple[str, ...], data: DataConfig
) -> dict[str, Any]:
    """config.json from which `timm.create_model("local-dir:...", pretrained=True)` rebuilds the
    model, its preprocessing and its label names."""
    source: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    size_bound = WEIGHT_SOURCE_KEYS | {
        "test_input_size",
        "test_crop_pct",
        "label_offset",
        "pool_size",
        "tag",
    }
    config = {key: value for key, value in source.items() if key not in size_bound}
    config |= preprocessing(model, data) | {"num_classes": len(classes), "custom_load": False}
    args = {key: v for key, v in spec.kwargs.items() if key != "pretrained_cfg_overlay"}
    _, head = timm_entrypoint(spec)
    return {
        "architecture": source["architecture"],
        "num_classes": len(classes),
        "num_features": getattr(model, "num_features", None),
        "label_names": list(classes),
        "model_args": args | _img_size(spec, data) | head,
        "pretrained_cfg": config,
    }


def _refuse_reserved(spec: ModelConfig) -> None:
    if taken := RESERVED_KWARGS & spec.kwargs.keys():
        raise UserError(f"model.kwargs: {min(taken)} is set by soupfleet; remove it")
    if spec.head == "attention" and "global_pool" in spec.kwargs:
        raise UserError("model.kwargs: global_pool is set by model.head: attention; remove it")


def _refuse_unknown(name: str) -> None:
    architectures = timm.list_models(exclude_filters=list(HEAD_ENTRYPOINTS))
    architecture, _, tag = name.partition(".")
    if architecture in HEAD_ENTRYPOINTS:
        raise UserError(
            f"model.name: {architecture} needs a backbone; write the backbone, and "
            f"model.head: {HEAD_ENTRYPOINTS[architecture]}"
        )
    if architecture in architectures:
        return _refuse_unknown_tag(architecture, tag)
    hint = did_you_mean(name, architectures) or "see timm.list_models()"
    raise UserError(f"model.name: timm has no model {name!r}; {hint}")


def _refuse_unknown_tag(architecture: str, tag: str) -> None:
    published = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and f"{architecture}.{tag}" not in published:
        raise UserError(
            f"model.name: timm has no weights {tag!r} of {architecture}; "
            f"there are {', '.join(published) or 'none'}"
        )


def _img_size(spec: ModelConfig, data: DataConfig) -> dict[str, int]:
    """The argument for data.image_size of a network with a fixed input size."""
    if data.image_size is None:
        return {}
    config = timm.models.get_pretrained_cfg(spec.name, allow_unregistered=True)
    fixed = config is not None and config.fixed_input_size
    return {"img_size": data.image_size} if fixed or "img_size" in spec.kwargs else {}


def _freshly_initialised(model: nn.Module, seed: int) -> nn.Module:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    arguments: dict[str, Any] = model._model_args  # type: ignore[assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: nn.Module = timm.create_model(
            config["architecture"], pretrained_cfg=config, **arguments
        )
    return fresh
