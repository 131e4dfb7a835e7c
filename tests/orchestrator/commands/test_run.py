"""Sessions: what they do not touch."""

from pathlib import Path

import pytest

from tests.orchestrator.small_fleet import run_small
from workers.errors import UserError


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    diary = tmp_path / "runs" / "small" / "notes" / "diary.txt"
    diary.parent.mkdir(parents=True)
    diary.write_text("dear diary")
    with pytest.raises(UserError, match=r"is no experiment and holds 'notes'; give the experiment"):
        run_small(tmp_path)
    assert diary.read_text() == "dear diary"
    assert [path.name for path in diary.parent.parent.iterdir()] == ["notes"]


def test_an_experiment_that_is_refused_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    """What a crash before preflight left is cleared; a file somebody put beside it is not."""
    folder = tmp_path / "runs" / "small"
    (folder / "ledger").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {name: test_resnet}\nname: small\n")
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no module 'nowhere'"):
        run_small(tmp_path, "train.unfreeze=[{epoch: 0, modules: nowhere}]")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
