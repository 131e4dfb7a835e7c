"""The verb `run`: which files it leaves alone, and which stored values it keeps."""

from pathlib import Path

import pytest
import yaml

from tests.orchestrator.small_fleet import run_small
from workers.errors import UserError


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    diary = tmp_path / "runs" / "small" / "notes" / "diary.txt"
    diary.parent.mkdir(parents=True)
    diary.write_text("dear diary")
    with pytest.raises(UserError, match=r"runs/small .*'notes'.*--name"):
        run_small(tmp_path)
    assert diary.read_text() == "dear diary"
    assert [path.name for path in diary.parent.parent.iterdir()] == ["notes"]


def test_a_refused_experiment_leaves_other_files_alone(tmp_path: Path) -> None:
    """Files of a crash before preflight are cleared; another file beside them is not."""
    folder = tmp_path / "runs" / "small"
    (folder / "ledger").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {name: test_resnet}\nname: small\n")
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no module 'nowhere'"):
        run_small(tmp_path, "train.unfreeze=[{epoch: 0, modules: nowhere}]")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_begun_experiment_keeps_its_stored_values(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default of `soup.metric` was nll when it began, and there was no section `ensemble`."""
    uri, first = run_small(folder, "soup.metric=nll", "sweep.seeds=2")
    stored = Path(uri) / "config.yaml"
    tree = yaml.safe_load(stored.read_text())
    del tree["ensemble"]
    stored.write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    _, again = run_small(folder, "sweep.seeds=2")
    assert not again.worked and again.results == first.results
    assert again.moment.config.soup.metric == "nll"
    assert "soup.metric: nll (default: top1)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"soup\.metric: nll -> top1"):
        run_small(folder, "sweep.seeds=2", "soup.metric=top1")
    _, wider = run_small(folder, "sweep.seeds=3", extend=True)
    assert wider.worked and wider.moment.config.soup.metric == "nll"
    assert yaml.safe_load(stored.read_text())["soup"]["metric"] == "nll"
