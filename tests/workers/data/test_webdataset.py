"""Tar shards: indexed samples and refusals."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.image_folders import write_classes
from tests.shard_writers import write_shards, write_tar
from workers.config.data import DataConfig
from workers.data import scan
from workers.errors import UserError

Members = dict[str, bytes | tarfile.TarInfo]


def picture(seed: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 5), (seed % 256, seed // 256, 7)).save(content, "PNG")
    return content.getvalue()


def samples(num: int) -> Members:
    return {
        f"{i:03d}.{suffix}": content
        for i in range(num)
        for suffix, content in (("png", picture(i)), ("cls", b"%d" % (i % 2)))
    }


def spec_of(root: Path, **settings: object) -> DataConfig:
    return DataConfig(source="webdataset", root=str(root), **{"train": "a.tar", **settings})


def refusal(root: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        scan(spec_of(root, **settings), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_shards_match_patterns_and_are_read_by_position(tmp_path: Path) -> None:
    write_classes(tmp_path / "folder", {"ant": 9, "bee": 9})
    shards = [tmp_path / "wds" / f"train-{i:03d}.tar" for i in range(3)]
    classes = write_shards(tmp_path / "folder", shards)
    spec = spec_of(tmp_path / "wds", train="train-{000..002}.tar", classes=classes)
    images, corrupt, warnings = scan(spec, seed=0)
    assert images.classes == ("ant", "bee") and not corrupt and not warnings
    assert sum(map(images.count, images.split_names)) == 18
    for split in images.split_names:
        for i, key in enumerate(images.keys(split)):
            shard, name, stem = key.split("/")
            assert shard in {path.name for path in shards}
            file = tmp_path / "folder" / name / f"{stem}.png"
            assert images.content(split, i) == file.read_bytes()
            assert images.classes[images.labels(split)[i]] == name
    globbed, _, _ = scan(spec.model_copy(update={"train": {"x": "train-*.tar"}}), seed=0)
    assert globbed.keys("val") == images.keys("val")


def test_given_splits_are_not_changed(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test", "far")):
        write_classes(tmp_path / split, {"a": 4, "b": 4}, seed=i)
        write_shards(tmp_path / split, [tmp_path / f"{split}.tar"], "json")
    spec = spec_of(tmp_path, train="train.tar", val="val.tar", test="test.tar", ood="far.tar")
    images, _, _ = scan(spec, seed=0)
    assert images.split_names == ("train", "val", "test", "ood:far.tar")
    assert [images.class_counts(split) for split in images.split_names] == [(4, 4)] * 4
    assert all(key.startswith("test.tar/") for key in images.keys("test"))


def test_labels_are_numbers_or_names_in_cls_or_json(tmp_path: Path) -> None:
    labels: list[tuple[str, bytes]] = [
        ("cls", b"1"),
        ("CLS", b" 0\n"),
        ("cls", b"dog"),
        ("json", b'{"label": 0}'),
        ("json", b'{"class": "dog", "n": 3}'),
        ("json", b'{"cls": "1"}'),
    ]
    members: Members = {"README": b"no sample", "__meta__.json": b"{}", "dir/x.txt": b"text"}
    for i, (suffix, content) in enumerate(labels * 4):
        members |= {f"./{i}.png": picture(i), f"./{i}.{suffix}": content, f"./{i}.pyd": b"\x80"}
    write_tar(tmp_path / "a.tar", members)
    images, _, _ = scan(spec_of(tmp_path, classes=["cat", "dog"]), seed=0)
    labels_by_sample = {
        int(key.rpartition("/")[2]) % 6: int(label)
        for split in images.split_names
        for key, label in zip(images.keys(split), images.labels(split), strict=True)
    }
    assert [labels_by_sample[i] for i in range(6)] == [1, 0, 1, 0, 1, 1]


def test_classes_are_those_of_the_list_or_the_file_or_the_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(20))
    assert scan(spec_of(tmp_path), seed=0)[0].classes == ("0", "1")
    (tmp_path / "classes.json").write_text(json.dumps(["x", "y"]))
    assert scan(spec_of(tmp_path), seed=0)[0].classes == ("x", "y")
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    images, _, warnings = scan(spec_of(tmp_path, classes="names.txt"), seed=0)
    assert images.classes == ("one", "two", "three")
    assert "train has no image of 1 class(es): three" in warnings


def test_numbers_are_classes_in_numeric_order(tmp_path: Path) -> None:
    members = samples(30)
    for i in range(30):
        members[f"{i:03d}.cls"] = b"%d" % (2, 10, 100)[i % 3]
    write_tar(tmp_path / "a.tar", members)
    assert scan(spec_of(tmp_path), seed=0)[0].classes == ("2", "10", "100")


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(8) | {"bad.png": picture(99), "bad.cls": b"2"})
    message = refusal(tmp_path, classes=["x", "y"])
    assert "a.tar/bad" in message and "label 2" in message and "2 classes" in message
    write_tar(tmp_path / "a.tar", samples(8) | {"bad.png": picture(99), "bad.cls": b"yy"})
    assert "did you mean y?" in refusal(tmp_path, classes=["x", "y"])
    assert "'yy'" in refusal(tmp_path)
    write_tar(tmp_path / "a.tar", samples(8) | {"bad.png": picture(99), "bad.cls": b"-1"})
    assert "-1" in refusal(tmp_path) and "-1" in refusal(tmp_path, classes=["x", "y"])


@pytest.mark.parametrize("label", [{}, {"bad.cls": b" "}, {"bad.json": b"[]"}, {"bad.json": b"{"}])
def test_an_image_without_a_label_is_named(tmp_path: Path, label: Members) -> None:
    write_tar(tmp_path / "a.tar", samples(8) | {"bad.png": picture(99)} | label)
    message = refusal(tmp_path)
    assert "'bad'" in message and "a.tar" in message and "no label" in message


@pytest.mark.parametrize("member", ["../bad.png", "/bad.png", "x/../../bad.png"])
def test_a_path_outside_the_shard_is_refused(tmp_path: Path, member: str) -> None:
    write_tar(tmp_path / "a.tar", samples(2) | {member: picture(9)})
    message = refusal(tmp_path)
    assert repr(member) in message and "leads out" in message


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    write_tar(tmp_path / "a.tar", samples(2) | {"x.png": link("x.png", kind)})
    assert "'x.png'" in refusal(tmp_path)


@pytest.mark.parametrize("again", ["000.png", "000.json"])
def test_a_repeated_key_is_refused(tmp_path: Path, again: str) -> None:
    write_tar(tmp_path / "a.tar", samples(3))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        info = tarfile.TarInfo(again)
        tar.addfile(info, io.BytesIO())
    assert "'000' twice" in refusal(tmp_path)


def test_a_sample_without_exactly_one_image_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2) | {"x.cls": b"0", "x.jp2": b"?"})
    assert "'x'" in refusal(tmp_path) and "0 images" in refusal(tmp_path)
    write_tar(tmp_path / "a.tar", {"x.cls": b"0", "x.png": b"?", "x.jpg": b"?"})
    assert "2 images" in refusal(tmp_path)


def test_a_shard_without_samples_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"readme.txt": b"nothing"})
    assert "holds no samples" in refusal(tmp_path)
    write_tar(tmp_path / "a.tar", {})
    assert "holds no samples" in refusal(tmp_path)


@pytest.mark.parametrize("cut", ["data", "header", "boundary", "last", "garbage"])
def test_a_truncated_shard_is_refused(tmp_path: Path, cut: str) -> None:
    shard = tmp_path / "a.tar"
    write_tar(shard, samples(6))
    with tarfile.open(shard) as tar:
        third, last = tar.getmembers()[4], tar.getmembers()[-1]
    end = {
        "data": third.offset_data + 20,
        "header": third.offset + 100,
        "boundary": third.offset,
        "last": last.offset_data + 512,
        "garbage": third.offset,
    }[cut]
    content = shard.read_bytes()
    shard.write_bytes(content[:end] + (os.urandom(2048) if cut == "garbage" else b""))
    message = refusal(tmp_path)
    assert "a.tar" in message and "truncated" in message


def test_a_file_in_another_format_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"x" * 4096):
        (tmp_path / "a.tar").write_bytes(content)
        assert "a.tar is not a tar file" in refusal(tmp_path)
    write_tar(tmp_path / "b.tar", samples(4))
    (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    assert "gzip" in refusal(tmp_path) and "decompress" in refusal(tmp_path)


def test_a_pipe_is_refused_with_the_reason(tmp_path: Path) -> None:
    message = refusal(tmp_path, train="pipe:cat a.tar")
    assert "shell command" in message and "by position" in message
    write_tar(tmp_path / "a.tar", samples(8))
    assert "data.val" in refusal(tmp_path, val="pipe:aws s3 cp x -")


def test_a_missing_shard_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(8))
    assert "names b.tar" in refusal(tmp_path, train="{a,b}.tar")
    assert "there are a.tar" in refusal(tmp_path, train="{a,b}.tar")
    assert "matches no file" in refusal(tmp_path, train="c-*.tar")
    assert "is a folder" in refusal(tmp_path, train=".")
    assert "data.root is not set" in str(
        pytest.raises(UserError, scan, DataConfig(source="webdataset"), 0).value
    )


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(8))
    (tmp_path / "b.tar").mkdir()  # cannot be opened, also not by root
    assert "names b.tar, which cannot be read (Is a directory)" in refusal(tmp_path, train="*.tar")


def test_a_shard_named_twice_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(8))
    assert "data.test names a.tar, which data.train already has" in refusal(tmp_path, test="a.tar")
    assert "data.train" in refusal(tmp_path, train=["a.tar", "./a.tar"])


def test_a_shard_that_becomes_shorter_is_an_error_not_a_skip(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(12))
    images, _, _ = scan(spec_of(tmp_path), seed=0)
    os.truncate(tmp_path / "a.tar", 600)
    with pytest.raises(OSError, match=r"a\.tar ends before"):
        [images.image("train", i) for i in range(images.count("train"))]


@pytest.mark.skipif("SOUPFLEET_DATA" not in os.environ, reason="needs SOUPFLEET_DATA")
def test_a_real_shard_has_no_corrupt_image() -> None:
    root = Path(os.environ["SOUPFLEET_DATA"]) / "cub100_128"
    images, corrupt, warnings = scan(spec_of(root, train="train-000000.tar"), seed=0)
    assert len(images.classes) == 100 and not corrupt
    assert sum(map(images.count, images.split_names)) > 300
    key, label = images.keys("train")[0], images.labels("train")[0]
    assert key.split("/")[1] == images.classes[label]
    assert all("has no image of" in warning for warning in warnings)
