"""A pool of ingredients small enough for tests: three short fine-tunings on 32-pixel digits."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from workers.config.data import DataConfig
from workers.config.model import BaseConfig, ModelConfig
from workers.context import WorkerContext
from workers.data import Images, eval_pixels, normalise, scan
from workers.models.build import preprocessing
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.predictions import write_predictions
from workers.storage.store import Store
from workers.types import SELECTION, Checkpoint, Cohort, WorkerConfig

DATA = DataConfig(source="digits", image_size=32)
VIT = ModelConfig(name="test_vit")
RESNET = ModelConfig(name="test_resnet")
NUM_SAMPLES = 65
"""For BatchNorm: a full batch, and one image that must be dropped."""


@dataclass
class Pool:
    worker: WorkerContext
    cohort: Cohort
    members: tuple[Checkpoint, ...]
    scores: tuple[float, ...]
    base: Checkpoint

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.members)


def make_pool(
    folder: Path,
    model: ModelConfig,
    num_members: int = 3,
    data: DataConfig = DATA,
    num_val: int = 150,
) -> Pool:
    """Members differ by seed and learning rate; their predictions on val and test are cached.

    A pool is trained once per process; every caller gets a copy of its own.
    """
    torch.set_num_threads(1)
    trained, pool = _pool(model.model_dump_json(), num_members, data.model_dump_json(), num_val)
    shutil.copytree(trained.name, folder, dirs_exist_ok=True)
    worker_config = pool.worker.config.model_copy(update={"uri": str(folder)})
    return replace(pool, worker=WorkerContext(worker_config))


@cache
def _pool(
    model: str, num_members: int, data: str, num_val: int
) -> tuple[tempfile.TemporaryDirectory[str], Pool]:
    folder = tempfile.TemporaryDirectory()
    model_config, data_config = (
        ModelConfig.model_validate_json(model),
        DataConfig.model_validate_json(data),
    )
    return folder, _trained(Path(folder.name), model_config, data_config, num_members, num_val)


def _trained(
    folder: Path, model: ModelConfig, data: DataConfig, num_members: int, num_val: int
) -> Pool:
    worker_config = WorkerConfig(
        uri=str(folder),
        seed=3,
        data=data,
        base=BaseConfig(),
        metric="top1",
        batchnorm_samples=NUM_SAMPLES,
    )
    images, _, _ = scan(data, seed=3)
    few = [
        s
        for split, n in (("train", 320), ("val", num_val), ("test", 150))
        for s in images.samples(split)[:n]
    ]
    Images(images.classes, few).save(Store(worker_config.uri))
    worker = WorkerContext(worker_config)
    torch.manual_seed(0)
    net = worker.model(model)
    batchnorm = "recompute" if model == RESNET else "none"
    cohort = Cohort(id="c", model=model, base=f"base/{model.name}", batchnorm=batchnorm)
    start = write_checkpoint(worker.store, cohort.base, None, 0, net.state_dict())
    _train(net, worker, seed=99, lr=3e-3, epochs=4)
    trunk = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    members, scores = [], []
    for i in range(num_members):
        net.load_state_dict(trunk)
        _train(net, worker, seed=i, lr=1e-3 * (1 + i % 4), epochs=2)
        name, step = f"run{i}/{20:08d}", 20
        member = write_checkpoint(worker.store, name, i, step, net.state_dict(), base=start.name)
        members.append(member)
        scores.append(_predict(net, worker, member.id))
    return Pool(worker, cohort, tuple(members), tuple(scores), start)


def _train(net: nn.Module, worker: WorkerContext, seed: int, lr: float, epochs: int) -> None:
    config = preprocessing(net, worker.config.data)
    inputs = normalise(eval_pixels(worker.images, "train", config), config)
    labels = torch.from_numpy(worker.images.labels("train"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    order = np.random.default_rng(seed)
    net.train()
    for _ in range(epochs):
        for batch in np.array_split(order.permutation(len(labels)), 10):
            loss = nn.functional.cross_entropy(net(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


def _predict(net: nn.Module, worker: WorkerContext, checkpoint_id: str) -> float:
    config = preprocessing(net, worker.config.data)
    selection = 0.0
    for split in (SELECTION, "test"):
        labels = worker.images.labels(split)
        found = logits(net, eval_pixels(worker.images, split, config), config, "cpu")
        keys = worker.images.keys(split)
        write_predictions(worker.store, checkpoint_id, split, keys, labels, found)
        if split == SELECTION:
            selection = score(found, labels).top1
    return selection
