"""Preflight: look at data, models and storage before anything trains; facts, or a refusal."""

from collections.abc import Iterator

import torch
from torch import nn

from workers.data import Images, eval_pixels, normalise, survey
from workers.model import create_model, has_batchnorm, load_initial, preprocessing
from workers.optim import require_optimizer
from workers.serialise import write_tensors
from workers.spec import ModelSpec
from workers.storage import Bytes, Store
from workers.types import (
    AnyEvent,
    Facts,
    ModelFacts,
    Preflighted,
    PreflightOrder,
    SplitFacts,
    UserError,
    model_key,
)
from workers.worker import Worker

FEW_CHECKPOINTS = 10
"""Free disk for fewer than these is worth a warning: a fleet writes one per run and epoch."""
ADAM_MOMENTS = 2
"""Optimizer state per parameter: that of Adam, which few optimizers exceed."""


def preflight(order: PreflightOrder, attempt: int, worker: Worker) -> Iterator[AnyEvent]:
    """Yields Preflighted, after writing splits.parquet. Raises UserError for what cannot work."""
    setting = worker.setting
    for name in order.opts:
        require_optimizer(name)
    worker.store.probe()
    images, corrupt, warnings = survey(setting.data, setting.seed, worker.progress.touch)
    models = {}
    for spec in order.models:
        models[model_key(spec)] = _model_facts(spec, images, worker)
        worker.progress.touch()
    images.save(worker.store)
    facts = Facts(
        classes=images.classes,
        splits={split: _split_facts(images, split) for split in images.split_names},
        corrupt=corrupt,
        models=models,
        warnings=(*warnings, *_disk_warning(worker.store, models)),
    )
    yield Preflighted(facts=facts)


def _split_facts(images: Images, split: str) -> SplitFacts:
    return SplitFacts(
        count=images.count(split),
        fingerprint=images.fingerprint(split),
        class_counts=images.class_counts(split),
    )


def _model_facts(spec: ModelSpec, images: Images, worker: Worker) -> ModelFacts:
    """Builds the model on the CPU, and loads its checkpoint if it names one; downloads nothing."""
    model = create_model(spec, len(images.classes), worker.setting.data)
    if spec.checkpoint:
        load_initial(model, spec)
    config = preprocessing(model, worker.setting.data)
    pixels = eval_pixels(images, "train", config, count=2)
    _refuse_wrong_output(model, normalise(pixels, config), spec, len(images.classes))
    parameters = list(model.parameters())
    model_bytes = _size_of(model)
    moments = ADAM_MOMENTS * sum(parameter.nbytes for parameter in parameters)
    return ModelFacts(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        model_bytes=model_bytes,
        checkpoint_bytes=model_bytes + moments,
        has_batchnorm=has_batchnorm(model),
        preprocessing=config,
    )


def _refuse_wrong_output(
    model: nn.Module, inputs: torch.Tensor, spec: ModelSpec, num_classes: int
) -> None:
    size = "x".join(str(side) for side in inputs.shape[-2:])
    try:
        with torch.inference_mode():
            shape = tuple(model.eval()(inputs).shape)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model {spec.name} cannot take images of {size} pixels ({reason}); "
            "change data.image_size or model.kwargs"
        ) from error
    if shape != (len(inputs), num_classes):
        raise UserError(
            f"model {spec.name} gave an output of shape {list(shape)} for {len(inputs)} images, "
            f"not one logit for each of {num_classes} classes; change model.kwargs"
        )


def _size_of(model: nn.Module) -> int:
    """Bytes of its model.safetensors."""
    sink = _Counting()
    write_tensors(sink, model.state_dict())
    return sink.size


class _Counting:
    """A sink that keeps nothing."""

    size = 0

    def write(self, data: Bytes) -> None:
        self.size += memoryview(data).nbytes


def _disk_warning(store: Store, models: dict[str, ModelFacts]) -> list[str]:
    free, largest = (
        store.free_bytes(),
        max((m.checkpoint_bytes for m in models.values()), default=0),
    )
    if free is None or free >= FEW_CHECKPOINTS * largest:
        return []
    return [
        f"storage {store} has {free / 2**30:.1f} GiB free, room for only {free // largest} "
        f"training checkpoints of {largest / 2**30:.2f} GiB"
    ]
