"""The same images give the same soup, byte for byte, however they are stored and cached."""

from pathlib import Path

import pytest

from tests.orchestrator.small_fleet import run_small
from tests.shard_writers import write_parquet, write_shards

FEATURES = (
    "train.epochs=1",
    "train.mixup=0.2",
    "train.color_jitter=0.3",
    "merge.mode=off",
)


def served(folder: Path, *overrides: str) -> bytes:
    _, outcome = run_small(folder, *FEATURES, *overrides)
    assert outcome.exit_code == 0
    return (folder / "runs" / "small" / "soup" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def from_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("folders")
    return folder / "images", served(folder, "data.cache=off")


def test_as_tar_shards(from_folders: tuple[Path, bytes], tmp_path: Path) -> None:
    """Shards on S3 are read by the same code."""
    images, expected = from_folders
    root = tmp_path / "shards"
    classes = write_shards(images, [root / "train-000.tar", root / "train-001.tar"])
    source = ("data.source=webdataset", f"data.root={root}", "data.train=train-{000..001}.tar")
    assert served(tmp_path, *source, f"data.classes=[{','.join(classes)}]") == expected


def test_as_parquet_from_the_decoded_cache(
    from_folders: tuple[Path, bytes], tmp_path: Path
) -> None:
    images, expected = from_folders
    write_parquet(images, tmp_path / "hub" / "train.parquet", hub=True)
    source = ("data.source=parquet", f"data.root={tmp_path / 'hub'}", "data.train=train.parquet")
    assert served(tmp_path, *source, "data.cache=disk", "data.workers=1") == expected
