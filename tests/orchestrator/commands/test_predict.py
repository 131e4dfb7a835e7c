"""The verb `predict` refuses an unwritable file, and an ensemble with a missing member."""

import os
from pathlib import Path

import pytest

from orchestrator.commands.predict import label_images
from tests.image_folders import write_picture
from workers.errors import UserError
from workers.scoring import ensembles
from workers.storage.store import Store
from workers.types import EnsembleResult


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(3):
        write_picture(tmp_path / "images" / f"{i}.png", seed=i)
    return tmp_path / "images"


def ensemble(store: Store) -> None:
    """An ensemble whose members do not exist."""
    members = ("r0/00000001-0", "r1/00000001-0")
    kind = "soft_voting"
    result = EnsembleResult(id=kind, kind=kind, members=members, scores={}, vs_best_single={})
    ensembles.write_ensemble(store, result)


def test_an_unwritable_file_is_refused_before_any_image_is_read(
    tmp_path: Path, images: Path
) -> None:
    for out, reason in ((images, "is a folder"), (tmp_path / "no" / "x.csv", "does not exist")):
        with pytest.raises(UserError, match=reason):
            label_images(tmp_path / "none", images, out, None, None)
    if os.getuid():
        images.chmod(0o500)
        with pytest.raises(UserError, match="x.csv .* permission"):
            label_images(tmp_path / "none", images, images / "x.csv", None, None)
        images.chmod(0o700)


def test_a_missing_member_of_an_ensemble_is_reported_in_one_sentence(
    tmp_path: Path, images: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    ensemble(store)
    with pytest.raises(UserError, match=r"r0/00000001-0 is not in .*soupfleet verify"):
        label_images(tmp_path, images, tmp_path / "out.csv", store, "soft_voting")
    assert not (tmp_path / "out.csv").exists()
