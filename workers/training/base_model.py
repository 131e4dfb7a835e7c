"""The base: the common starting point of all runs of a cohort, written once.

fresh model (seeded) -> initial weights -> head     or     the last checkpoint of trunk or probe
"""

import hashlib
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from workers.config.model import ModelConfig
from workers.context import WorkerContext
from workers.errors import UserError
from workers.models.build import create_model, init_head, timm_config
from workers.models.pretrained import load_head, load_initial
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.checkpoints import open_weights
from workers.storage.safetensors_writer import HashingSink, write_tensors
from workers.types import AnyEvent, BaseOrder, BaseReady, Checkpoint


def make_base(order: BaseOrder, attempt: int, worker: WorkerContext) -> Iterator[AnyEvent]:
    """Yields BaseReady. All attempts write the same bytes, so they need no numbers."""
    model = _fresh(order, worker)
    if order.source is None:
        yield BaseReady(checkpoint=_write(order, model, model.state_dict(), worker))
        return
    with open_weights(worker.store, order.source) as weights:
        yield BaseReady(checkpoint=_write(order, model, weights, worker))


def base_seed(seed: int, name: str) -> int:
    """The seed of the initial weights; different for every base of an experiment."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


def _fresh(order: BaseOrder, worker: WorkerContext) -> nn.Module:
    """A new model, built on the CPU, whose generator draws the same numbers everywhere."""
    worker_config = worker.config
    seed = base_seed(worker_config.seed, order.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(order.model, len(worker.images.classes), worker_config.data)
    if order.source is None:
        load_initial(model, order.model)
        _init_head(model, order.model, worker_config.base.init, seed)
    return model


def _init_head(model: nn.Module, spec: ModelConfig, how: str, seed: int) -> None:
    init_head(model, "timm" if how == "timm" else "zero", seed)
    if how == "checkpoint":
        load_head(model, spec)


def _write(
    order: BaseOrder, model: nn.Module, tensors: Mapping[str, Tensor], worker: WorkerContext
) -> Checkpoint:
    config = timm_config(model, order.model, worker.images.classes, worker.config.data)
    files = {"config.json": (json.dumps(config, indent=2) + "\n").encode()}
    if order.expected is not None:
        _refuse_other_bytes(order, tensors)
    return write_checkpoint(worker.store, order.name, None, 0, tensors, extra_files=files)


def _refuse_other_bytes(order: BaseOrder, tensors: Mapping[str, Tensor]) -> None:
    sink = HashingSink()
    write_tensors(sink, tensors)
    if sink.sha256.hexdigest() != order.expected:
        raise UserError(
            f"{order.name} is missing or damaged, and made again it has other bytes than the one "
            "the runs started from, e.g. because of another version of torch or timm; restore "
            "its files, or start anew with another --name"
        )
