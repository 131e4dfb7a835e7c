"""Predictions: labels for new images, by a served model and by ensembles."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.workers.small_soups import RESNET, Pool, make_pool
from workers.errors import UserError
from workers.models.build import timm_config
from workers.scoring import ensembles
from workers.scoring.compare import compare
from workers.scoring.metrics import log_softmax
from workers.serving.predict import by_ensemble, by_model, images_below, open_ensemble, write_csv
from workers.storage.layout import checkpoint_dir
from workers.storage.predictions import read_predictions
from workers.storage.store import CorruptFile, Store
from workers.types import CompareOrder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), RESNET)


@pytest.fixture(scope="module")
def pictures(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of the test split, as files in the order of the split."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(20):
        pool.worker.images.image("test", i).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def compared(pool: Pool) -> Pool:
    """The pool with saved ensembles and the config.json of its base."""
    worker, cohort = pool.worker, pool.cohort
    config = timm_config(
        worker.model(cohort.model), cohort.model, worker.images.classes, worker.config.data
    )
    worker.store.write(f"{cohort.base}/config.json", json.dumps(config).encode())
    ids = tuple(member.id for member in pool.members)
    order = CompareOrder(
        best_single=ids[0],
        soups=(),
        members=ids,
        splits=("val", "test"),
        stacking=tuple((member_id,) for member_id in ids),
    )
    list(compare(order, 0, worker))
    return pool


def cached(pool: Pool, member: int) -> np.ndarray:
    return read_predictions(pool.worker.store, pool.members[member].id, "test")[2][:20]


def test_soft_voting_of_files_is_soft_voting_of_the_split(compared: Pool, pictures: Path) -> None:
    calls: list[None] = []
    store, files = compared.worker.store, images_below(pictures)
    answers = by_ensemble(store, "soft_voting", files, lambda: calls.append(None))
    expected = sum(cached(compared, i).astype(np.float64) for i in range(3)) / 3
    np.testing.assert_allclose(answers.logits, expected, atol=1e-5)
    assert answers.labels == compared.worker.images.classes
    assert len(calls) == 3 * 20


def test_stacking_of_files_is_stacking_of_the_split(compared: Pool, pictures: Path) -> None:
    store = compared.worker.store
    answers = by_ensemble(store, "stacking", images_below(pictures))
    _, stacker = open_ensemble(store, "stacking")
    assert stacker is not None
    expected = stacker([cached(compared, i) for i in range(3)])
    np.testing.assert_allclose(answers.logits, expected, atol=1e-3)


def test_the_table_names_images_labels_and_confidences(
    compared: Pool, pictures: Path, tmp_path: Path
) -> None:
    """A broken image has a row too, so that rows can be counted."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for file in images_below(pictures)[:3]:
        (folder / "deep" / file.name).write_bytes(file.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    served = tmp_path / "soup"
    served.mkdir()
    store, member = compared.worker.store, compared.members[0]
    (served / "config.json").write_bytes(store.read(f"{compared.cohort.base}/config.json"))
    weights = store.fetch(f"{checkpoint_dir(member.id)}/model.safetensors")
    (served / "model.safetensors").write_bytes(weights.read_bytes())
    files = images_below(folder)
    answers = by_model(served, files)
    assert write_csv(answers, files, folder, tmp_path / "out.csv") == 1
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    names = [row["image"] for row in rows]
    assert names == ["broken.png", "deep/000.png", "deep/001.png", "deep/002.png"]
    assert (rows[0]["label"], rows[0]["confidence"]) == ("", "")
    expected = np.exp(log_softmax(cached(compared, 0)[:3]))
    for row, probabilities in zip(rows[1:], expected, strict=True):
        assert row["label"] == answers.labels[int(probabilities.argmax())]
        assert float(row["confidence"]) == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_missing_ensembles_images_and_members_are_named(compared: Pool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no ensemble 'voting'; there are soft_voting, stack"):
        open_ensemble(compared.worker.store, "voting")
    with pytest.raises(UserError, match="does not exist; give an image, or a folder"):
        images_below(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        images_below(tmp_path)
    store = Store(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="there are none"):
        open_ensemble(store, "stacking")
    gone = open_ensemble(compared.worker.store, "soft_voting")[0]
    gone = gone.model_copy(update={"id": "gone", "members": ("run9/00000001-0",)})
    ensembles.write_ensemble(compared.worker.store, gone)
    with pytest.raises(CorruptFile, match=r"member run9/00000001-0 is not in"):
        by_ensemble(compared.worker.store, "gone", [tmp_path / "x.png"])
