"""Shards, Parquet files and patterns that a stranger wrote: refused in a sentence, soon."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.shard_writers import write_tar
from tests.workers.data.test_webdataset import refusal, samples
from workers.config.data import DataConfig
from workers.data import Images, Sample, scan
from workers.data.remote_files import with_credentials_of
from workers.data.sources.split_files import _most_names
from workers.errors import UserError
from workers.storage.layout import SPLITS
from workers.storage.store import Store


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("a.tar", 1),
        ("{000..099}.tar", 100),
        ("{a,b}-{0..9}.tar", 20),
        ("{5..1}{x,y,z}", 15),
        ("a,b.tar", 1),
    ],
)
def test_the_names_of_a_pattern_are_counted(pattern: str, count: int) -> None:
    assert _most_names(pattern) == count


@pytest.mark.parametrize(
    "pattern",
    ["x-{000000000..999999999}.tar", "{0..9}" * 8, f"{{0..{'9' * 50}}}", "{" * 99, "{a,b}" * 17],
)
def test_a_pattern_of_too_many_names_is_refused_before_it_is_expanded(
    tmp_path: Path, pattern: str
) -> None:
    message = refusal(tmp_path, train=pattern)
    assert "data.train" in message and ("files, more than" in message or "braces" in message)


def test_a_variable_in_a_pattern_that_is_not_set_is_named(tmp_path: Path) -> None:
    assert "NOT_SET" in refusal(tmp_path, train="${NOT_SET}.tar")


def _with_header(path: Path, field: slice, value: bytes) -> None:
    """Change the first header, and give it the right checksum."""
    data = bytearray(path.read_bytes())
    data[field] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (slice(124, 136), b"\xff" * 12),  # a negative size
        (slice(124, 136), b"\x80" + b"\xff" * 11),
        (slice(0, 7), b"\xff\xfe.png"[:7].ljust(7, b"x")),
        (slice(156, 157), b"x"),
    ],
)
def test_a_shard_with_a_strange_header_is_refused(
    tmp_path: Path, field: slice, value: bytes
) -> None:
    write_tar(tmp_path / "a.tar", samples(20))
    _with_header(tmp_path / "a.tar", field, value)
    assert "a.tar" in refusal(tmp_path)


def test_a_member_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    name = b"\xff.png".decode(errors="surrogateescape")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(name))
    (tmp_path / "a.tar").write_bytes(content.getvalue())
    assert "whose name is not UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("label", [b"9" * 5000, b"x" * 30_000_000])
def test_a_long_label_is_refused_and_not_shown(tmp_path: Path, label: bytes) -> None:
    write_tar(tmp_path / "a.tar", {**samples(6), "zz.png": b"", "zz.cls": label})
    assert len(refusal(tmp_path)) < 3000


def test_a_deep_document_has_no_label(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": b"", "a.json": b"[" * 100_000})
    assert "has no label in its .json member" in refusal(tmp_path)


def _parquet(path: Path, names: list[str], hub: str | None = None) -> None:
    columns = {"image": pa.array([b"x"] * 4, pa.binary()), "label": pa.array([0, 1, 0, 1])}
    table = pa.Table.from_arrays([columns[name] for name in names], names)
    if hub is not None:
        table = table.replace_schema_metadata({"huggingface": hub})
    pq.write_table(table, path)


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, name: str) -> None:
    _parquet(tmp_path / "a.parquet", ["image", "label", name])
    with pytest.raises(UserError, match=f"has several columns '{name}'"):
        scan(DataConfig(source="parquet", root=str(tmp_path), train={"a": "a.parquet"}), 0)


@pytest.mark.parametrize("hub", ["[" * 100_000, "[]", json.dumps({"info": {"features": [1]}})])
def test_metadata_of_another_form_names_no_classes(tmp_path: Path, hub: str) -> None:
    _parquet(tmp_path / "a.parquet", ["image", "label"], hub)
    with pytest.raises(UserError, match="no image of class '0'"):
        scan(DataConfig(source="parquet", root=str(tmp_path), train={"a": "a.parquet"}), 0)


def test_splits_in_the_store_have_no_credentials_and_are_read_with_them(tmp_path: Path) -> None:
    root = "s3://key:secret@bucket/data?region=eu"
    spec = DataConfig(source="webdataset", root=root, train={"a": "a.tar"})
    path = "s3://key:secret@bucket/data/a.tar?region=eu"
    store = Store(str(tmp_path))
    Images(("a", "b"), [Sample("train", "a/0", path, 0, "0" * 64, 512, 9)], spec).save(store)
    assert b"secret" not in store.read(SPLITS)
    assert [sample.path for sample in Images.load(store, spec).samples("train")] == [path]
    assert with_credentials_of("s3://other/a.tar", [root]) == "s3://other/a.tar"
