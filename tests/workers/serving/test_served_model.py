"""Served models: scores on class folders, matched by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import workers.serving.served_model
from tests.image_folders import write_classes
from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.data import Images, Sample, eval_pixels
from workers.errors import UserError
from workers.models.build import create_model, timm_config
from workers.scoring.forward import logits
from workers.scoring.metrics import score
from workers.serving.served_model import evaluate_folder, open_served

LABELS = ("ant", "bee", "cow")
DATA = DataConfig(image_size=32, crop_pct=0.9)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The files of a served folder that loading needs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = ModelConfig(name="test_resnet")
    model = create_model(spec, len(LABELS), DATA)
    folder = tmp_path / "soup"
    folder.mkdir()
    config = timm_config(model, spec, LABELS, DATA)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def test_the_score_is_that_of_the_images_one_by_one(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of blocks and the model's order of labels do not matter."""
    data = tmp_path / "data"
    write_classes(data, {"bee": 40, "ant": 50, "cow": 45})
    files = sorted(data.rglob("*.png"))
    labels = [LABELS.index(file.parent.name) for file in files]
    pairs = zip(files, labels, strict=True)
    images = Images(LABELS, [Sample("x", str(f), str(f), label, "") for f, label in pairs])
    model, preprocessing, names = open_served(served)
    assert names == LABELS and preprocessing["crop_pct"] == 0.9
    rows = logits(model, eval_pixels(images, "x", preprocessing), preprocessing, "cpu")
    expected = score(rows, np.array(labels))
    assert evaluate_folder(served, data) == expected and expected.count == 135
    monkeypatch.setattr(workers.serving.served_model, "IMAGES_IN_MEMORY", 64)
    assert evaluate_folder(served, data) == expected


def test_labels_may_lack_a_folder(served: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "data", {"cow": 5})
    assert evaluate_folder(served, tmp_path / "data").count == 5


def test_an_unknown_class_folder_is_refused_with_a_similar_label(
    served: Path, tmp_path: Path
) -> None:
    write_classes(tmp_path / "data", {"ant": 2, "bees": 2})
    with pytest.raises(UserError, match=r"'bees'.*did you mean bee"):
        evaluate_folder(served, tmp_path / "data")


def test_images_that_cannot_be_scored_are_named(served: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(UserError, match="not a folder"):
        evaluate_folder(served, data)
    data.mkdir()
    with pytest.raises(UserError, match="no class folders"):
        evaluate_folder(served, data)
    (data / "ant").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        evaluate_folder(served, data)
    write_classes(data, {"ant": 2})
    (data / "ant" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken.png does not decode"):
        evaluate_folder(served, data)


def test_a_folder_that_is_no_model_is_refused(served: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "data", {"ant": 2})
    with pytest.raises(UserError, match="no config.json"):
        evaluate_folder(tmp_path, tmp_path / "data")
    config = json.loads((served / "config.json").read_text())
    (served / "config.json").write_text(json.dumps({**config, "label_names": ["ant"]}))
    with pytest.raises(UserError, match="1 labels for 3 outputs"):
        evaluate_folder(served, tmp_path / "data")
    (served / "config.json").write_text(json.dumps(config))
    (served / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be loaded"):
        evaluate_folder(served, tmp_path / "data")
