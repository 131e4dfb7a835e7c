"""Evaluate: logits do not depend on company or order; predictions survive the store."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.models.build import create_model, preprocessing
from workers.scoring.forward import EVAL_BATCH, logits
from workers.storage.layout import predictions_path
from workers.storage.predictions import read_predictions, write_predictions
from workers.storage.store import Store

DATA = DataConfig(source="digits", image_size=32)


@pytest.mark.parametrize("name", ["test_vit", "mobilenetv2_035"])
def test_logits_of_an_image_do_not_depend_on_its_neighbours(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(ModelConfig(name=name), 10, DATA)
    config = preprocessing(model, DATA)
    pixels = torch.randint(0, 256, (EVAL_BATCH * 2 + 7, 3, 32, 32), dtype=torch.uint8)
    done: list[int] = []
    whole = logits(model, pixels, config, "cpu", done.append)
    assert done == [64, 128, 135]
    assert whole.dtype == np.float32 and whole.shape == (135, 10)
    order = torch.randperm(len(pixels))
    assert np.array_equal(logits(model, pixels[order], config, "cpu"), whole[order.numpy()])
    assert np.array_equal(logits(model, pixels[5:8], config, "cpu"), whole[5:8])


def test_every_module_is_left_in_the_mode_it_was_in() -> None:
    model = create_model(ModelConfig(name="test_resnet"), 10, DATA).train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    before = [module.training for module in model.modules()]
    statistics = frozen.running_mean
    assert statistics is not None
    kept = statistics.clone()
    logits(model, torch.zeros(3, 3, 32, 32, dtype=torch.uint8), preprocessing(model, DATA), "cpu")
    assert [module.training for module in model.modules()] == before
    assert not frozen.training and torch.equal(kept, statistics)


def test_predictions_survive_the_store_in_the_promised_types(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    rows[2, 1] = np.nan
    keys, labels = [f"a/{i}.png" for i in range(5)], np.arange(5) % 3
    write_predictions(store, "run/00000010-1", "ood:sketch", keys, labels, rows)
    path = predictions_path("run/00000010-1", "ood:sketch")
    assert path == "predictions/run_00000010-1/ood_sketch.parquet"
    schema = pq.read_schema(tmp_path / path)
    assert schema.field("key").type == pa.string() and schema.field("label").type == pa.int32()
    assert schema.field("logits").type == pa.list_(pa.float32(), 3)
    got = read_predictions(store, "run/00000010-1", "ood:sketch")
    assert got[0] == keys and got[1].tolist() == labels.tolist()
    assert np.array_equal(got[2], rows, equal_nan=True)


def test_absent_predictions_are_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_predictions(Store(str(tmp_path)), "run/00000010-1", "val")
