"""Every file in configs/ loads, expands and survives being written down."""

import re
from pathlib import Path

import pytest

from orchestrator.config import dump, load, read
from orchestrator.experiment.sweep import expand
from workers.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("**/*.yaml"))
STUDIES = [path for path in CONFIGS if path.parent.name == "studies"]


def _variables(path: Path) -> list[str]:
    return re.findall(r"\$\{(\w+)\}", path.read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_expands(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _variables(path):
        monkeypatch.setenv(name, str(tmp_path / "weights.safetensors"))
    experiment = load(path, [f"data.root={tmp_path}"])
    assert experiment.name == path.stem
    assert len(expand(experiment)) >= 2
    assert read(dump(experiment), "dump") == experiment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_config_carries_a_path_of_somebodys_machine(path: Path) -> None:
    assert not re.search(r"(?m)^[^#]*:\s*[\"']?(~|/|[A-Z]:\\)", path.read_text())


def test_a_config_for_a_data_set_says_where_it_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = next(one for one in CONFIGS if one.stem == "pacs_vit")
    monkeypatch.setenv("VIT_TINY_CHECKPOINT", "weights.safetensors")
    with pytest.raises(UserError, match=r"data\.root is missing.*PACS is published with"):
        load(path)


def test_a_config_for_published_weights_names_the_variable_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOBILENETV2_CHECKPOINT", raising=False)
    path = next(one for one in CONFIGS if one.stem == "pacs_mobilenet")
    with pytest.raises(UserError, match=r"MOBILENETV2_CHECKPOINT.*pass model\.checkpoint=PATH"):
        load(path, [f"data.root={tmp_path}"])
    loaded = load(path, [f"data.root={tmp_path}", "model.checkpoint=w.safetensors"])
    assert loaded.model.checkpoint == str(Path.cwd() / "w.safetensors")


def test_the_quickstart_needs_no_option_and_has_eight_runs() -> None:
    experiment = load(next(one for one in CONFIGS if one.stem == "quickstart"))
    assert experiment.data.source == "digits"
    assert experiment.base.trunk_epochs > 0
    assert len(expand(experiment)) >= 8


def test_every_study_has_a_small_and_a_full_form() -> None:
    small = {path.stem for path in STUDIES if not path.stem.endswith(".full")}
    full = {path.stem.removesuffix(".full") for path in STUDIES if path.stem.endswith(".full")}
    assert small == full and small


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_says_whose_work_it_follows_and_where_its_images_are_published(path: Path) -> None:
    comments = " ".join(re.findall(r"(?m)# *(.*)$", path.read_text()))
    assert re.search(r"\(\D*20\d\d\)", comments)
    assert re.search(r"[Pp]ublished", comments)
