"""Scan: images, refusals, warnings and splits."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.image_folders import write_classes, write_picture
from workers.config.data import DataConfig
from workers.data import Images, scan
from workers.errors import UserError
from workers.storage.store import Store


def refusal(spec: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        scan(spec, seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_are_split_stratified_and_survive_the_store(tmp_path: Path) -> None:
    images, corrupt, warnings = scan(DataConfig(source="digits"), seed=0)
    assert images.split_names == ("train", "val", "test") and not corrupt
    assert not warnings
    assert sum(map(images.count, images.split_names)) == 1797
    every_digit = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    for split in ("val", "test"):
        for count, total in zip(images.class_counts(split), every_digit, strict=True):
            assert abs(count - 0.15 * total) <= 1
    images.save(Store(str(tmp_path)))
    again = Images.load(Store(str(tmp_path)), DataConfig(source="digits"))
    assert again.classes == images.classes
    for split in images.split_names:
        assert again.keys(split) == images.keys(split)
        assert again.fingerprint(split) == images.fingerprint(split)
    assert again.image("val", 3).tobytes() == images.image("val", 3).tobytes()
    assert again.image("val", 3).mode == "RGB" and again.image("val", 3).size == (8, 8)


def test_the_split_depends_only_on_seed_and_content(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"a": 20, "b": 20})
    first, _, _ = scan(DataConfig(root=str(tmp_path / "one")), seed=1)
    os.rename(tmp_path / "one", tmp_path / "two")
    for file in sorted((tmp_path / "two").rglob("*.png")):
        file.rename(file.with_name("x" + file.name))
    moved, _, _ = scan(DataConfig(root=str(tmp_path / "two")), seed=1)
    other, _, _ = scan(DataConfig(root=str(tmp_path / "two")), seed=2)

    def contents(images: Images, split: str) -> list[str]:
        return [sample.sha256 for sample in images.samples(split)]

    assert contents(first, "val") == contents(moved, "val")
    assert first.fingerprint("val") != moved.fingerprint("val")  # the keys changed
    assert set(contents(moved, "val")) != set(contents(other, "val"))


def test_named_training_folders_and_ood_are_relative_to_the_root(tmp_path: Path) -> None:
    for i, domain in enumerate(("photo", "art", "sketch")):
        write_classes(tmp_path / domain, {"dog": 8, "cat": 8}, seed=i)
    write_classes(tmp_path / "cartoon", {"dog": 3}, seed=9)
    spec = DataConfig(
        root=str(tmp_path), train=["photo", "art"], ood={"sketch": "sketch", "toon": "cartoon"}
    )
    images, _, warnings = scan(spec, seed=0)
    assert images.classes == ("cat", "dog")
    assert images.split_names == ("train", "val", "test", "ood:sketch", "ood:toon")
    assert images.class_counts("ood:toon") == (0, 3)
    domains = {key.split("/")[0] for key in images.keys("train")}
    assert domains == {"photo", "art"}
    assert all(key.startswith("sketch/") for key in images.keys("ood:sketch"))
    assert warnings == ()


def test_corrupt_images_are_named_and_belong_to_no_split(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "text.jpg").write_text("no image")
    (tmp_path / "b" / "empty.png").write_bytes(b"")
    whole = (tmp_path / "b" / "000.png").read_bytes()
    (tmp_path / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    images, corrupt, warnings = scan(DataConfig(root=str(tmp_path)), seed=0)
    assert set(corrupt) == {"a/text.jpg", "b/empty.png", "b/cut.png"}
    assert sum(map(images.count, images.split_names)) == 20
    assert "3 images do not decode" in warnings[0] and "a/text.jpg" in warnings[0]


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    for i, (mode, suffix) in enumerate(
        [
            ("L", "jpg"),
            ("P", "gif"),
            ("RGBA", "webp"),
            ("1", "bmp"),
            ("CMYK", "tif"),
            ("I;16", "PNG"),
        ]
    ):
        Image.new(mode, (5 + i, 5)).save(tmp_path / "a" / f"odd{i}.{suffix}")
    images, corrupt, _ = scan(DataConfig(root=str(tmp_path)), seed=0)
    assert corrupt == ()
    assert sum(map(images.count, images.split_names)) == 14
    for split in images.split_names:
        for i in range(images.count(split)):
            assert images.image(split, i).mode == "RGB"


def test_equal_content_stays_in_one_split(tmp_path: Path) -> None:
    for i in range(30):
        content = io.BytesIO()
        Image.new("RGB", (4, 4), (i, 0, 0)).save(content, "PNG")
        for copy in range(3):
            for name in ("a", "b") if i < 5 else ("ab"[i % 2],):
                (tmp_path / name).mkdir(exist_ok=True)
                (tmp_path / name / f"{i}-{copy}.png").write_bytes(content.getvalue())
    images, _, warnings = scan(DataConfig(root=str(tmp_path)), seed=3)
    where: dict[str, set[str]] = {}
    for split in images.split_names:
        for sample in images.samples(split):
            where.setdefault(sample.sha256, set()).add(split)
    assert len(where) == 30 and all(len(splits) == 1 for splits in where.values())
    assert any("5 image(s)" in warning and "class" in warning for warning in warnings)


def test_a_class_too_small_for_every_split_is_a_warning(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 20, "rare": 1})
    images, _, warnings = scan(DataConfig(root=str(tmp_path)), seed=0)
    assert images.class_counts("train")[1] == 1
    assert "val has no image of 1 class(es): rare" in warnings


def test_training_images_in_a_given_test_folder_are_a_warning(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "test", {"a": 2, "b": 2})
    spec = DataConfig(root=str(tmp_path), train="train", test="test", val_fraction=0.2)
    _, _, warnings = scan(spec, seed=0)
    assert any("of test are also in" in warning for warning in warnings)


def test_a_missing_root_says_what_to_give() -> None:
    assert "data.root=FOLDER" in refusal(DataConfig())
    assert "/nowhere/at/all" in refusal(DataConfig(root="/nowhere/at/all"))


def test_a_missing_folder_is_named_with_what_is_there(tmp_path: Path) -> None:
    write_classes(tmp_path / "photo", {"a": 2, "b": 2})
    assert "photo" in refusal(DataConfig(root=str(tmp_path), train="foto"))
    message = refusal(DataConfig(root=str(tmp_path), train="photo", ood={"s": "sketch"}))
    assert "data.ood.s" in message and "sketch" in message


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "c").mkdir()
    assert str(tmp_path / "c") in refusal(DataConfig(root=str(tmp_path)))


def test_one_class_or_none_is_refused(tmp_path: Path) -> None:
    assert "0 class folder(s)" in refusal(DataConfig(root=str(tmp_path)))
    write_classes(tmp_path, {"a": 4})
    assert "1 class folder(s) (a)" in refusal(DataConfig(root=str(tmp_path)))


def test_a_class_without_an_image_that_decodes_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.jpg").write_text("no")
    assert "'c'" in refusal(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize("how", ["content", "link"])
def test_an_image_in_val_and_test_is_refused_by_name(tmp_path: Path, how: str) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 4}, seed=1)
    write_classes(tmp_path / "val", {"a": 2, "b": 2}, seed=2)
    write_classes(tmp_path / "test", {"a": 2, "b": 2}, seed=3)
    if how == "link":
        (tmp_path / "test" / "b" / "x.png").symlink_to(tmp_path / "val" / "b" / "001.png")
    else:
        content = (tmp_path / "val" / "b" / "001.png").read_bytes()
        (tmp_path / "test" / "b" / "x.png").write_bytes(content)
    message = refusal(DataConfig(root=str(tmp_path), train="train", val="val", test="test"))
    assert "val/b/001.png" in message and "test/b/x.png" in message


def test_an_unknown_class_in_ood_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 4}, seed=1)
    write_classes(tmp_path / "sketch", {"a": 4, "zebra": 4}, seed=2)
    message = refusal(DataConfig(root=str(tmp_path), train="train", ood="sketch"))
    assert "'zebra'" in message and "a, b" in message


def test_splits_in_place_of_classes_are_recognised(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val")):
        write_classes(tmp_path / split, {"a": 4, "b": 4}, seed=i)
    assert "data.train=train" in refusal(DataConfig(root=str(tmp_path)))


def test_training_folders_must_agree_on_the_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"a": 4, "b": 4}, seed=1)
    write_classes(tmp_path / "two", {"a": 4}, seed=2)
    message = refusal(DataConfig(root=str(tmp_path), train=["one", "two"]))
    assert "'b'" in message and "two" in message


def test_digits_take_no_folders() -> None:
    assert "data.root" in refusal(DataConfig(source="digits", root="/somewhere"))


def test_an_image_that_vanishes_later_is_an_error_not_a_skip(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 6, "b": 6})
    images, _, _ = scan(DataConfig(root=str(tmp_path)), seed=0)
    Path(images.samples("val")[0].path).unlink()
    with pytest.raises(FileNotFoundError):
        images.image("val", 0)
    write_picture(tmp_path / images.keys("val")[0], seed=5)
    images.image("val", 0)
