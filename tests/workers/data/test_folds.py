"""Folds: partitions of the training images that depend only on seed and content."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.image_folders import write_classes
from workers.config.data import DataConfig
from workers.data import Images, scan
from workers.data.split import assign_folds
from workers.errors import UserError
from workers.storage.store import Store

LABELLED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30).map(str)), max_size=120)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(2, 7), st.integers(0, 9))
def test_folds_are_even_in_every_class_and_altogether(
    sizes: list[int], num: int, seed: int
) -> None:
    images = [(label, f"{label}-{i}") for label, size in enumerate(sizes) for i in range(size)]
    folds = assign_folds(images, num, seed)
    assert folds.keys() == {content for _, content in images}
    assert set(folds.values()) <= set(range(num))
    for label in range(len(sizes)):
        counts = Counter(folds[content] for other, content in images if other == label)
        assert max(counts.values()) - min(counts[k] for k in range(num)) <= 1
    whole = Counter(folds.values())
    assert max(whole.values()) - min(whole[k] for k in range(num)) <= 1


@given(LABELLED, st.integers(2, 5), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(images, num, seed, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(images, len(images))
    assert assign_folds(images, num, seed) == assign_folds(shuffled, num, seed)


@given(LABELLED, st.integers(2, 5), st.integers(0, 9))
def test_every_content_has_one_fold_and_copies_are_balanced(
    images: list[tuple[int, str]], num: int, seed: int
) -> None:
    folds = assign_folds(images, num, seed)
    assert folds.keys() == {content for _, content in images}
    classes: dict[str, set[int]] = defaultdict(set)
    for label, content in images:
        classes[content].add(label)
    pure = [pair for pair in images if len(classes[pair[1]]) == 1]
    alone = assign_folds(pure, num, seed)
    for label in range(4):
        sizes = Counter(content for other, content in pure if other == label)
        counts = Counter(dict.fromkeys(range(num), 0))
        for content, copies in sizes.items():
            counts[alone[content]] += copies
        assert not sizes or max(counts.values()) - min(counts.values()) <= max(sizes.values())


def test_other_seeds_give_other_folds() -> None:
    images = [(0, str(i)) for i in range(40)]
    assert assign_folds(images, 4, 0) != assign_folds(images, 4, 1)


def test_folds_partition_the_images_outside_val_and_test(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", {"a": 23, "b": 20, "c": 9})
    whole = DataConfig(root=str(tmp_path / "data"))
    spec = whole.model_copy(update={"folds": 3})
    plain, _, _ = scan(whole, seed=4)
    images, _, _ = scan(spec, seed=4)
    assert images.split_names == plain.split_names
    assert plain.fold_counts == () and plain.train_indices(None).tolist() == list(range(38))
    assert all(images.fingerprint(split) == plain.fingerprint(split) for split in plain.split_names)
    held_out = [set(images.keys(f"fold:{k}")) for k in range(3)]
    assert set.union(*held_out) == set(images.keys("train"))
    assert images.fold_counts == tuple(map(len, held_out)) == (13, 13, 12)
    for k in range(3):
        indices = images.train_indices(k)
        assert indices.dtype == np.int64
        assert {images.keys("train")[i] for i in indices} == set(images.keys("train")) - held_out[k]
        assert min(images.class_counts(f"fold:{k}")) >= 1
        assert images.count(f"fold:{k}") == len(images.labels(f"fold:{k}"))
        assert images.image(f"fold:{k}", 0).mode == "RGB"
    images.save(Store(str(tmp_path / "store")))
    again = Images.load(Store(str(tmp_path / "store")), spec)
    assert again.fold_counts == images.fold_counts
    assert [again.keys(f"fold:{k}") for k in range(3)] == [
        images.keys(f"fold:{k}") for k in range(3)
    ]


def test_more_folds_than_the_rarest_class_has_images_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 30, "rare": 6})
    assert scan(DataConfig(root=str(tmp_path), folds=4), seed=0)[0].fold_counts == (6, 6, 6, 6)
    with pytest.raises(UserError) as caught:
        scan(DataConfig(root=str(tmp_path), folds=5), seed=0)
    message = str(caught.value)
    assert "data.folds=5" in message and "'rare' has 4" in message and "at most 4" in message


def test_copies_do_not_make_a_class_large_enough(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 30, "b": 30})
    files = sorted((tmp_path / "b").glob("*.png"))
    for i, file in enumerate(files[3:]):
        file.write_bytes(files[i % 3].read_bytes())
    with pytest.raises(UserError, match="'b' has 1 .*leave data.folds out"):
        scan(DataConfig(root=str(tmp_path), folds=2), seed=0)


def test_digits_have_folds_too() -> None:
    images, _, _ = scan(DataConfig(source="digits", folds=5), seed=0)
    assert max(images.fold_counts) - min(images.fold_counts) <= 1
    assert sum(images.fold_counts) == images.count("train")
