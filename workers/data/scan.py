"""Survey: look at every image once, refuse what cannot work, and split the rest.

find -> read, hash and decode (threads) -> refuse or warn -> split, deal folds -> Images
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from workers.config.data import DataConfig
from workers.data.decode import DECODE_ERRORS, decode
from workers.data.images import Images, Sample
from workers.data.remote_files import is_remote
from workers.data.sources import ImageRef, Reader, digit_image, find_images, reader
from workers.data.split import assign_folds, assign_splits, seeded_order
from workers.errors import UserError, first_line

SCAN_BLOCK = 1024
"""Images handed to the threads together: their bytes come and go, so memory stays flat."""


class ScannedImage(NamedTuple):
    ref: ImageRef
    sha256: str
    decodes: bool


def scan(
    spec: DataConfig, seed: int, on_image: Callable[[], None] | None = None
) -> tuple[Images, tuple[str, ...], tuple[str, ...]]:
    """(images by split, keys of corrupt images, warnings).

    Within a split the order is a seeded shuffle, so that its first n images are a fair sample.
    `on_image` is called after every image, and for every sample of shards while they are indexed.
    Raises UserError, one sentence, for data that cannot be used, and OSError for a remote place
    that does not answer.
    """
    touch = on_image or (lambda: None)
    classes, found = find_images(spec, touch)
    looked = list(_scan_images(found, reader(spec), touch))
    corrupt = tuple(look.ref.key for look in looked if not look.decodes)
    good = [look for look in looked if look.decodes]
    _refuse_empty_classes(classes, found, good)
    _refuse_overlap(good, spec)
    images = Images(classes, _split(good, spec, seed), spec)
    _refuse_empty_splits(images, spec)
    if spec.folds:
        images = Images(classes, _with_folds(images, spec.folds, seed), spec)
    warnings = (*_corrupt_warning(corrupt), *_overlap_warnings(images), *_gap_warnings(images))
    return images, corrupt, warnings


def _scan_images(
    found: list[ImageRef], reads: Reader, touch: Callable[[], object]
) -> Iterator[ScannedImage]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(found), SCAN_BLOCK):
            for look in pool.map(partial(_scan_image, reads), found[start : start + SCAN_BLOCK]):
                touch()
                yield look


def _scan_image(reads: Reader, found: ImageRef) -> ScannedImage:
    if not found.path:
        content = digit_image(int(found.key)).tobytes()
        return ScannedImage(found, hashlib.sha256(content).hexdigest(), True)
    try:
        content = reads.read(found.path, found.offset, found.size)
    except OSError as error:
        if is_remote(found.path):
            raise
        reason = error.strerror or first_line(error)
        raise UserError(f"image {found.path} cannot be read: {reason}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        decode(content)
    except DECODE_ERRORS:
        return ScannedImage(found, sha256, False)
    return ScannedImage(found, sha256, True)


def _refuse_empty_classes(
    classes: tuple[str, ...], found: list[ImageRef], good: list[ScannedImage]
) -> None:
    alive = {(look.ref.split_source, look.ref.label) for look in good}
    for image in found:
        if (image.split_source, image.label) not in alive:
            raise UserError(
                f"none of the images of class {classes[image.label]!r} in {image.split_source} decodes, "
                f"e.g. {image.key}; replace them, or leave out the class"
            )


def _refuse_empty_splits(images: Images, spec: DataConfig) -> None:
    for split in ("train", "val") if spec.train else ("val",):
        if not images.count(split):
            raise UserError(
                f"no image is left for {split} of {sum(map(images.count, images.split_names))}; "
                "add images, or change data.val_fraction and data.test_fraction"
            )


def _refuse_overlap(good: list[ScannedImage], spec: DataConfig) -> None:
    """Selecting on a test image makes its score a lie."""
    if spec.val is None or spec.test is None:
        return
    vals = {look.sha256: look.ref for look in good if look.ref.split_source == "val"}
    for look in good:
        if look.ref.split_source == "test" and (twin := vals.get(look.sha256)):
            raise UserError(
                f"the image {twin.key} of data.val is also in data.test, as {look.ref.key}; "
                "remove one of the two, or leave out data.val and data.test to have them split"
            )


def _split(good: list[ScannedImage], spec: DataConfig, seed: int) -> list[Sample]:
    settled = _assigned_splits(good, spec, seed)
    samples = [
        Sample(
            settled.get((look.ref.split_source, look.sha256), look.ref.split_source),
            look.ref.key,
            look.ref.path,
            look.ref.label,
            look.sha256,
            look.ref.offset,
            look.ref.size,
        )
        for look in good
    ]
    rank = {"train": 0, "val": 1, "test": 2}

    def place(s: Sample) -> tuple[int, str, str, int, str]:
        # Up to the key, which settles equal images only, alike for any source of the same images.
        return rank.get(s.split, 3), s.split, seeded_order(seed, s.sha256), s.label, s.key

    return sorted(samples, key=place)


def _assigned_splits(
    good: list[ScannedImage], spec: DataConfig, seed: int
) -> dict[tuple[str, str], str]:
    """Split of every (pool, content) of the pools that others are set aside from."""
    wanted = (
        ("val", spec.val, spec.val_fraction, "train"),
        ("test", spec.test, spec.test_fraction, spec.test_from),
    )
    settled = {}
    for pool in ("train", "val"):
        fractions = {s: share for s, given, share, of in wanted if given is None and of == pool}
        members = [(look.ref.label, look.sha256) for look in good if look.ref.split_source == pool]
        for content, split in assign_splits(members, fractions, seed).items():
            settled[pool, content] = pool if split == "train" else split
    return settled


def _with_folds(images: Images, folds: int, seed: int) -> list[Sample]:
    """All samples, the training images with the fold that holds them out."""
    train = images.samples("train")
    _refuse_too_many_folds(images, folds)
    fold_of = assign_folds(((sample.label, sample.sha256) for sample in train), folds, seed)
    dealt = [replace(sample, fold=fold_of[sample.sha256]) for sample in train]
    others = [split for split in images.split_names if split != "train"]
    return [*dealt, *(sample for split in others for sample in images.samples(split))]


def _refuse_too_many_folds(images: Images, folds: int) -> None:
    """Every fold has to hold out an image of every class, and leave one to learn from."""
    contents = {(sample.label, sample.sha256) for sample in images.samples("train")}
    counts = Counter(label for label, _ in contents)
    rarest = min(counts, key=lambda label: (counts[label], label))
    count = counts[rarest]
    if folds > count:
        remedy = f"set data.folds to at most {count}" if count > 1 else "leave data.folds out"
        raise UserError(
            f"data.folds={folds} needs as many different training images of every class, but "
            f"class {images.classes[rarest]!r} has {count} after val and test were set aside; "
            f"{remedy}, or add images"
        )


def _corrupt_warning(corrupt: tuple[str, ...]) -> list[str]:
    if not corrupt:
        return []
    names = ", ".join(corrupt[:5]) + (", ..." if len(corrupt) > 5 else "")
    verb = "image does" if len(corrupt) == 1 else "images do"
    return [f"{len(corrupt)} {verb} not decode and belong to no split: {names}"]


def _overlap_warnings(images: Images) -> list[str]:
    """Equal content across splits, or under two labels; neither can be mended here."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    labels_of: dict[str, set[int]] = defaultdict(set)
    for split in images.split_names:
        for sample in images.samples(split):
            splits_of[sample.sha256].add(split)
            labels_of[sample.sha256].add(sample.label)
    shared = Counter(
        (first, other)
        for splits in splits_of.values()
        for first in splits & {"train", "val"}
        for other in splits - {first}
        if (first, other) != ("val", "train")
    )
    warnings = [
        f"{count} image(s) of {other} are also in {first}"
        for (first, other), count in sorted(shared.items())
    ]
    if contradicting := sum(len(labels) > 1 for labels in labels_of.values()):
        warnings.append(f"{contradicting} image(s) lie in more than one class")
    return warnings


def _gap_warnings(images: Images) -> list[str]:
    """Classes that a split has no image of; usual for ood, where nothing is said."""
    warnings = []
    for split in ("train", "val", "test") if images.count("train") else ("val", "test"):
        counts = images.class_counts(split)
        names = [name for name, n in zip(images.classes, counts, strict=True) if not n]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            warnings.append(f"{split} has no image of {len(names)} class(es): {shown}")
    return warnings
