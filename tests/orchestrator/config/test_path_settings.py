"""Paths in a configuration are filled in and absolute, wherever they are written."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import config
from orchestrator.config.path_settings import resolved
from orchestrator.experiment.sweep import expand
from workers.errors import UserError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoints(home: Path, sweep: str) -> list[str | None]:
    file = home / "x.yaml"
    file.write_text(f"data: {{source: digits}}\nmodel: {{name: a}}\nsweep: {sweep}\n")
    return [run.model.checkpoint for run in expand(config.load(file))]


@pytest.mark.parametrize(
    "sweep",
    [
        "{space: {model.checkpoint: [~/a.pth, '${WEIGHTS}/b.pth', c.pth, null]}}",
        "{space: {model.checkpoint: {choice: [~/a.pth, '${WEIGHTS}/b.pth', c.pth, null]}}}",
        "{runs: [{model: {checkpoint: ~/a.pth}}, {model.checkpoint: '${WEIGHTS}/b.pth'}, "
        "{model: {checkpoint: c.pth}}, {}]}",
    ],
)
def test_checkpoints_in_a_sweep_are_resolved_like_others(home: Path, sweep: str) -> None:
    assert checkpoints(home, sweep) == [
        f"{home}/a.pth",
        f"{home}/weights/b.pth",
        f"{home}/c.pth",
        None,
    ]


def test_a_variable_that_is_not_set_is_named_with_its_key(home: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.space\.model\.checkpoint is .*NOWHERE is not set"):
        checkpoints(home, "{space: {model.checkpoint: ['${NOWHERE}/a.pth']}}")
    with pytest.raises(UserError, match=r"sweep\.runs\.1\.model\.checkpoint is .*NOWHERE"):
        checkpoints(home, "{runs: [{}, {model: {checkpoint: '${NOWHERE}/a.pth'}}]}")


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"data": None, "model": 3, "sweep": {"space": [1], "runs": 2}},
        {"sweep": {"space": {"model.checkpoint": 3}, "runs": [3, {"model": "x"}]}},
        {"storage": "s3://bucket/x", "data": {"root": "gs://y"}},
    ],
)
def test_malformed_and_remote_paths_stay_as_they_are(tree: dict[str, Any]) -> None:
    assert resolved(tree, "x.yaml") == tree
