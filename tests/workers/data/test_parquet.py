"""Parquet files: columns, class names, random access, and refusals."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.image_folders import write_classes
from tests.shard_writers import list_images, write_parquet
from workers.config.data import DataConfig
from workers.data import scan
from workers.data.remote_files import Files
from workers.data.sources import parquet
from workers.data.sources.parquet import RowReader
from workers.errors import UserError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_classes(tmp_path / "folder", {"ant": 10, "bee": 10})
    return tmp_path / "folder"


def spec_of(root: Path, **settings: Any) -> DataConfig:
    return DataConfig(source="parquet", root=str(root), **{"train": "a.parquet", **settings})


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        scan(spec_of(root, **settings), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("names,hub", [(False, False), (True, False), (False, True), (True, True)])
def test_rows_are_images_with_their_labels(
    tmp_path: Path, pictures: Path, names: bool, hub: bool
) -> None:
    write_parquet(pictures, tmp_path / "a.parquet", names, hub)
    images, corrupt, warnings = scan(spec_of(tmp_path), seed=0)
    assert images.classes == (("ant", "bee") if names or hub else ("0", "1"))
    assert not corrupt and not warnings
    rows = list_images(pictures)
    for split in images.split_names:
        for i, key in enumerate(images.keys(split)):
            file, _, row = key.rpartition("/")
            name, _, content = rows[int(row)]
            assert file == "a.parquet" and images.content(split, i) == content
            assert images.labels(split)[i] == ["ant", "bee"].index(name)


def test_the_order_of_the_classes_can_be_given(tmp_path: Path, pictures: Path) -> None:
    write_parquet(pictures, tmp_path / "a.parquet", names=True)
    images, _, _ = scan(spec_of(tmp_path, classes=["bee", "ant"]), seed=0)
    assert images.classes == ("bee", "ant") and images.class_counts("train") == (6, 6)


def test_other_columns_and_kinds_of_columns(tmp_path: Path, pictures: Path) -> None:
    write_parquet(pictures, tmp_path / "plain.parquet", names=True)
    table = pq.read_table(tmp_path / "plain.parquet")
    columns = {
        "picture": table["image"].cast(pa.large_binary()),
        "species": table["label"].dictionary_encode(),
        "image": table["label"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    spec = spec_of(tmp_path, image_column="picture", label_column="species")
    assert scan(spec, seed=0)[0].classes == ("ant", "bee")


def test_several_files_and_given_splits(tmp_path: Path) -> None:
    for i, name in enumerate(("train-00", "train-01", "val", "test")):
        write_classes(tmp_path / name, {"a": 4, "b": 4}, seed=i)
        write_parquet(tmp_path / name, tmp_path / "data" / f"{name}.parquet")
    spec = spec_of(
        tmp_path, train="data/train-*.parquet", val="data/val.parquet", test="data/test.parquet"
    )
    images, _, _ = scan(spec, seed=0)
    assert [images.count(split) for split in images.split_names] == [16, 8, 8]


def test_row_groups_are_kept_within_bounds_and_read_from_any_process(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(pictures, tmp_path / "a.parquet", hub=True, group=3)
    monkeypatch.setattr(parquet, "CACHED_BYTES", 1)
    rows = RowReader(Files(), "image")
    contents = [content for _, _, content in list_images(pictures)]
    uri = str(tmp_path / "a.parquet")
    for row in (0, 19, 2, 3, 10, 19, 5):
        assert rows.read(uri, row) == contents[row]
        assert len(rows._groups) <= 2
    again = pickle.loads(pickle.dumps(rows))
    assert not again._groups and again.read(uri, 7) == contents[7]
    with pytest.raises(OSError, match="no row 20"):
        rows.read(uri, 20)


def test_a_missing_column_is_named_with_the_existing_ones(tmp_path: Path, pictures: Path) -> None:
    write_parquet(pictures, tmp_path / "a.parquet")
    assert "'img'; it has image, label" in refusal(tmp_path, image_column="img")
    assert "data.label_column" in refusal(tmp_path, label_column="fine_label")
    assert "not encoded images" in refusal(tmp_path, image_column="label")
    assert "class names" in refusal(tmp_path, label_column="image")


def test_a_missing_or_unknown_label_is_named(tmp_path: Path, pictures: Path) -> None:
    write_parquet(pictures, tmp_path / "plain.parquet")
    image = pq.read_table(tmp_path / "plain.parquet")["image"]
    for labels, message in (
        ([0, 1, None, *[0] * 17], "a.parquet/2 has no label"),
        ([0, 1, 5, *[0] * 17], "a.parquet/2 has the label 5"),
        ([0, 1, -1, *[0] * 17], "a.parquet/2 has the label -1"),
    ):
        pq.write_table(pa.table({"image": image, "label": labels}), tmp_path / "a.parquet")
        assert message in refusal(tmp_path, classes=["ant", "bee"])


def test_a_row_without_an_image_is_named(tmp_path: Path, pictures: Path) -> None:
    write_parquet(pictures, tmp_path / "plain.parquet", hub=True)
    table = pq.read_table(tmp_path / "plain.parquet")
    content = table["image"].to_pylist()
    content[4] = {"bytes": None, "path": "elsewhere.png"}
    pq.write_table(table.set_column(0, "image", pa.array(content)), tmp_path / "a.parquet")
    assert "row 4" in refusal(tmp_path)


def test_a_file_in_another_format_is_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet file at all")
    assert "not a whole Parquet file" in refusal(tmp_path)
    write_parquet(pictures, tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "not a whole Parquet file" in refusal(tmp_path)
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, tmp_path / "a.parquet")
    assert "no rows" in refusal(tmp_path)
    assert "there are a.parquet, b.parquet" in refusal(tmp_path, train="c.parquet")


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_file_damaged_inside_is_refused(tmp_path: Path, pictures: Path, column: str) -> None:
    write_parquet(pictures, tmp_path / "a.parquet")
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(1)
    chunk = group.column(["image", "label"].index(column))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "a.parquet").write_bytes(content)
    message = refusal(tmp_path)
    assert "a.parquet" in message and "cannot be read" in message
