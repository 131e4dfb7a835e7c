"""Preflight: check data, models and storage before anything trains."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from workers.config.model import ModelConfig
from workers.config.train import TrainConfig
from workers.context import WorkerContext
from workers.data import Images, eval_pixels, normalise, scan
from workers.data.augment import require_policy
from workers.errors import UserError
from workers.models.build import create_model, has_batchnorm, preprocessing
from workers.models.components import components_of
from workers.models.pretrained import load_initial
from workers.storage.layout import SPLITS
from workers.storage.safetensors_writer import file_size
from workers.storage.store import Store
from workers.training.import_weights import require_weights
from workers.training.loss import class_weights
from workers.training.optim import create_optimizer, require_optimizer
from workers.training.unfreezing import require_model_features
from workers.types import (
    SELECTION,
    AnyEvent,
    ModelInfo,
    Preflighted,
    PreflightOrder,
    PreflightResult,
    SplitInfo,
    model_key,
)

FEW_CHECKPOINTS = 10
"""Warn if free disk is for fewer checkpoints: a fleet writes one per run and epoch."""
ADAM_MOMENTS = 2.0
"""Optimizer state per parameter if it cannot be measured: that of Adam, which few exceed."""

TRIAL_STEPS = 6
"""Steps after which Lookahead, the slowest to begin, has all its state."""


def preflight(order: PreflightOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Yields Preflighted, after writing splits.parquet. Raises UserError if a run cannot work."""
    worker_config = worker.config
    for name in order.optimizers:
        require_optimizer(name)
    for _, train in order.train_configs:
        require_policy(train)
    worker.store.probe()
    images, corrupt, warnings = scan(worker_config.data, worker_config.seed, worker.progress.touch)
    for _, train in order.train_configs:
        class_weights(train, images.labels("train"), images.classes)
    models = {}
    for spec in order.models:
        models[model_key(spec)] = _model_info(spec, order, images, worker)
        worker.progress.touch()
    _refuse_other_images(order, images)
    result = PreflightResult(
        classes=images.classes,
        splits={s: _split_info(images, s) for s in dict.fromkeys(("train", *images.split_names))},
        corrupt=corrupt,
        models=models,
        folds=images.fold_counts,
        warnings=(*warnings, *_disk_warning(worker.store, models)),
    )
    _refuse_endless_round(order, images, worker)
    if order.expected is not None:
        _refuse_new_splits(order.expected, result, worker.store)
        result = order.expected
    yield Preflighted(facts=result, files={SPLITS: images.save(worker.store)})


def _refuse_new_splits(expected: PreflightResult, seen: PreflightResult, store: Store) -> None:
    """Refuse to write splits.parquet again for other images than the experiment began with."""
    for split, info in expected.splits.items():
        if seen.splits.get(split) != info or seen.classes != expected.classes:
            raise UserError(
                f"{SPLITS} in {store} is missing or damaged, and the images of {split} are not "
                "those that the experiment began with; restore that file or the images"
            )


def _refuse_other_images(order: PreflightOrder, images: Images) -> None:
    """An experiment that gains a model must still have the images that it began with."""
    for split, fingerprint in order.fingerprints.items():
        has_split = split == "train" or split in images.split_names
        if not has_split or images.fingerprint(split) != fingerprint:
            raise UserError(
                f"the images of split {split} are not those that the experiment began with; "
                "restore them, or pass --name OTHER to start another"
            )


def _refuse_endless_round(order: PreflightOrder, images: Images, worker: WorkerContext) -> None:
    if order.round_steps is None or order.longest_train is None:
        return
    per_epoch = order.longest_train.steps_per_epoch(images.count("train"), worker.config.ranks)
    steps = order.longest_train.epochs * per_epoch
    if order.round_steps >= steps:
        raise UserError(
            f"merge.every is {order.round_steps} steps, but the longest run has {steps}, and runs "
            "continue after a round; write a smaller number, or merge.mode=off"
        )


def _split_info(images: Images, split: str) -> SplitInfo:
    return SplitInfo(
        count=images.count(split),
        fingerprint=images.fingerprint(split),
        class_counts=images.class_counts(split),
    )


def _model_info(
    spec: ModelConfig, order: PreflightOrder, images: Images, worker: WorkerContext
) -> ModelInfo:
    """Build the model on the CPU, and load its checkpoint if it names one; downloads nothing."""
    model = create_model(spec, len(images.classes), worker.config.data)
    if spec.checkpoint:
        load_initial(model, spec)
    for key, train in order.train_configs:
        if key == model_key(spec):
            require_model_features(model, train)
            require_weights(model, train)
    config = preprocessing(model, worker.config.data)
    split = "train" if images.count("train") else SELECTION
    pixels = eval_pixels(images, split, config, count=2)
    inputs = normalise(pixels, config)
    _refuse_wrong_output(model, inputs, spec, len(images.classes))
    parameters = list(model.parameters())
    model_bytes = file_size(model.state_dict())
    return ModelInfo(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        model_bytes=model_bytes,
        checkpoint_bytes=model_bytes
        + _state_bytes(order, model_bytes, sum(parameter.nbytes for parameter in parameters)),
        has_batchnorm=has_batchnorm(model),
        components=components_of(model, inputs),
        preprocessing=config,
    )


def _state_bytes(order: PreflightOrder, model_bytes: int, parameter_bytes: int) -> int:
    """Bytes of the largest training state of the runs: optimizer state and moving average."""
    averaged = any(train.model_ema_decay is not None for _, train in order.train_configs)
    copies = max((state_copies(opt) for opt in order.optimizers), default=ADAM_MOMENTS)
    return model_bytes * averaged + round(copies * parameter_bytes)


def state_copies(opt: str) -> float:
    """Size of an optimizer's state over that of its parameters, measured by a few steps."""
    toy = nn.Linear(64, 64, bias=False)
    toy.weight.grad = torch.ones_like(toy.weight)
    try:
        optimizer = create_optimizer(toy, TrainConfig(opt=opt), head=set())
        for _ in range(TRIAL_STEPS):
            optimizer.step()
    except (UserError, RuntimeError):  # needs a GPU or a package, which slots may have
        return ADAM_MOMENTS
    states = optimizer.state_dict()["state"].values()
    values = [value for state in states for value in state.values()]
    state_bytes = sum(value.nbytes for value in values if isinstance(value, Tensor))
    return state_bytes / toy.weight.nbytes


def _refuse_wrong_output(
    model: nn.Module, inputs: torch.Tensor, spec: ModelConfig, num_classes: int
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


def _disk_warning(store: Store, models: dict[str, ModelInfo]) -> list[str]:
    free = store.free_bytes()
    largest = max((model.checkpoint_bytes for model in models.values()), default=0)
    if free is None or free >= FEW_CHECKPOINTS * largest:
        return []
    return [
        f"storage {store} has {free / 2**30:.1f} GiB free, room for only {free // largest} "
        f"training checkpoints of {largest / 2**30:.2f} GiB"
    ]
