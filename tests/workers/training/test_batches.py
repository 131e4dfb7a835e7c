"""The loss, and training batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.small_runs import NUM_TRAIN, RESNET, make_run, make_setting
from workers.context import WorkerContext
from workers.data import normalise
from workers.errors import UserError
from workers.models.build import preprocessing
from workers.training.batches import TrainBatches
from workers.training.loss import LossModule
from workers.types import RunSpec, WorkerConfig

WEIGHTS = np.array([0.5, 2.0, 1.0], np.float32)
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 1, 0, 0, 2, 1])


@pytest.fixture(scope="module")
def worker_config(tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    return make_setting(tmp_path_factory.mktemp("store"), folds=2)


def _batches_of(
    worker_config: WorkerConfig, run: RunSpec
) -> tuple[WorkerContext, nn.Module, TrainBatches]:
    worker = WorkerContext(worker_config)
    net = worker.model(run.model)
    return worker, net, TrainBatches(net, run, worker)


def test_without_weights_it_is_the_mean_cross_entropy() -> None:
    loss = LossModule(nn.Identity(), 0.1)(LOGITS, LABELS)
    assert torch.allclose(loss, functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))


def test_class_weights_multiply_and_are_not_divided_out() -> None:
    each = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    expected = (each * torch.from_numpy(WEIGHTS)[LABELS]).mean()
    assert torch.allclose(LossModule(nn.Identity(), 0.0, WEIGHTS)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_labels_and_one_hot_targets_have_the_same_loss(weights: np.ndarray | None) -> None:
    loss_module = LossModule(nn.Identity(), 0.2, weights)
    soft = functional.one_hot(LABELS, 3).float()
    assert torch.allclose(loss_module(LOGITS, LABELS), loss_module(LOGITS, soft))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_micro_batches_add_up(weights: np.ndarray | None) -> None:
    loss_module = LossModule(nn.Identity(), 0.1, weights)
    parts = [slice(0, 3), slice(3, 8)]
    shares = [loss_module(LOGITS[p], LABELS[p]) * len(LABELS[p]) / len(LABELS) for p in parts]
    assert torch.allclose(loss_module(LOGITS, LABELS), torch.stack(shares).sum())


def test_class_weights_are_not_in_the_state_dict() -> None:
    assert not LossModule(nn.Identity(), 0.0, WEIGHTS).state_dict()


def test_a_fold_is_trained_on_the_others(worker_config: WorkerConfig) -> None:
    run = make_run(model=RESNET, grad_accum_steps=2).model_copy(update={"fold": 1})
    worker, _, data = _batches_of(worker_config, run)
    seen = np.concatenate([micro for micros in data.plan(0) for micro in micros])
    expected = worker.images.train_indices(1)
    assert sorted(seen) == list(expected) and len(expected) < NUM_TRAIN
    assert data.steps_per_epoch == len(data.plan(3)) == 2


def test_uint8_batches_are_normalised_and_mixed_by_the_generator(
    worker_config: WorkerConfig,
) -> None:
    run = make_run(model=RESNET, mixup=0.5)
    worker, net, data = _batches_of(worker_config, run)
    batch = next(data.batches(data.plan(0), 0))
    assert batch[0].dtype == torch.uint8
    torch.manual_seed(1)
    images, targets = data.to_device(batch, 0)
    assert images.dtype == torch.float32 and targets.shape == (4, 10)
    torch.manual_seed(1)
    again, _ = data.to_device(batch, 0)
    other, _ = data.to_device(batch, 0)
    assert torch.equal(images, again) and not torch.equal(images, other)
    plain = TrainBatches(net, make_run(model=RESNET, channels_last=True), worker).to_device(
        batch, 0
    )
    config = preprocessing(net, worker_config.data)
    assert torch.equal(plain[0], normalise(batch[0], config)) and torch.equal(plain[1], batch[1])
    assert plain[0].is_contiguous(memory_format=torch.channels_last)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    worker_config = make_setting(tmp_path, ranks=12)
    with pytest.raises(UserError, match="22 training images are too few for 12 ranks"):
        _batches_of(worker_config, make_run(model=RESNET))
