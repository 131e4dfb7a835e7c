"""Scan: read every image once, refuse data that cannot be used, and split the rest.

find -> read, hash and decode (threads) -> refuse or warn -> assign splits and folds -> Images
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
from workers.data.decode import DAMAGED, decoding_fault
from workers.data.images import Images, Sample
from workers.data.remote_files import is_remote
from workers.data.sources import ImageRef, Reader, digit_image, find_images, reader
from workers.data.split import assign_folds, assign_splits, seeded_order
from workers.errors import UserError, first_line

SCAN_BLOCK = 1024
"""Images that are given to the threads at a time, which bounds the memory."""


class ScannedImage(NamedTuple):
    ref: ImageRef
    sha256: str
    fault: str | None = None
    """Why it does not decode. None: it does."""


def scan(
    spec: DataConfig, seed: int, on_image: Callable[[], None] | None = None
) -> tuple[Images, tuple[str, ...], tuple[str, ...]]:
    """(images by split, keys of corrupt images, warnings).

    The order within a split is a seeded shuffle, so that its first n images are a fair sample.
    `on_image` is called after every image, and for every sample of shards while they are indexed.

    Raises:
        UserError: the data cannot be used.
        OSError: a remote place does not answer.
    """
    touch = on_image or (lambda: None)
    classes, refs = find_images(spec, touch)
    scanned = list(_scan_images(refs, reader(spec), touch))
    broken = [image for image in scanned if image.fault is not None]
    good = [image for image in scanned if image.fault is None]
    _refuse_empty_classes(classes, refs, good)
    _refuse_overlap(good, spec)
    images = Images(classes, _split(good, spec, seed), spec)
    _refuse_empty_splits(images, spec)
    if spec.folds:
        images = Images(classes, _with_folds(images, spec.folds, seed), spec)
    warnings = (*_corrupt_warning(broken), *_overlap_warnings(images), *_gap_warnings(images))
    return images, tuple(image.ref.key for image in broken), warnings


def _scan_images(
    refs: list[ImageRef], files: Reader, touch: Callable[[], object]
) -> Iterator[ScannedImage]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(refs), SCAN_BLOCK):
            for image in pool.map(partial(_scan_image, files), refs[start : start + SCAN_BLOCK]):
                touch()
                yield image


def _scan_image(files: Reader, ref: ImageRef) -> ScannedImage:
    if not ref.path:
        content = digit_image(int(ref.key)).tobytes()
        return ScannedImage(ref, hashlib.sha256(content).hexdigest())
    try:
        content = files.read(ref.path, ref.offset, ref.size)
    except OSError as error:
        if is_remote(ref.path):
            raise
        reason = error.strerror or first_line(error)
        raise UserError(
            f"image {ref.path} cannot be read ({reason}); make it readable, or remove it"
        ) from error
    return ScannedImage(ref, hashlib.sha256(content).hexdigest(), decoding_fault(content))


def _refuse_empty_classes(
    classes: tuple[str, ...], refs: list[ImageRef], good: list[ScannedImage]
) -> None:
    nonempty = {(image.ref.split_source, image.ref.label) for image in good}
    for ref in refs:
        if (ref.split_source, ref.label) not in nonempty:
            raise UserError(
                f"no image of class {classes[ref.label]!r} in {ref.split_source} decodes, e.g. "
                f"{ref.key}; replace them, or leave out the class"
            )


def _refuse_empty_splits(images: Images, spec: DataConfig) -> None:
    for split in ("train", "val") if spec.train else ("val",):
        if not images.count(split):
            raise UserError(
                f"no image is left for {split} of {sum(map(images.count, images.split_names))}; "
                "add images, or change data.val_fraction and data.test_fraction"
            )


def _refuse_overlap(good: list[ScannedImage], spec: DataConfig) -> None:
    """Refuse images in both val and test: selection on a test image would bias its score."""
    if spec.val is None or spec.test is None:
        return
    vals = {image.sha256: image.ref for image in good if image.ref.split_source == "val"}
    for image in good:
        if image.ref.split_source == "test" and (same := vals.get(image.sha256)):
            raise UserError(
                f"the image {same.key} of data.val is also in data.test, as {image.ref.key}; "
                "remove one of the two, or leave out data.val and data.test to have them split"
            )


def _split(good: list[ScannedImage], spec: DataConfig, seed: int) -> list[Sample]:
    assigned = _assigned_splits(good, spec, seed)
    samples = [
        Sample(
            assigned.get((ref.split_source, sha256), ref.split_source),
            ref.key,
            ref.path,
            ref.label,
            sha256,
            ref.offset,
            ref.size,
        )
        for ref, sha256, _ in good
    ]
    rank = {"train": 0, "val": 1, "test": 2}

    def place(s: Sample) -> tuple[int, str, str, int, str]:
        # Equal for all sources of the same images, except for the key, which orders equal images.
        return rank.get(s.split, 3), s.split, seeded_order(seed, s.sha256), s.label, s.key

    return sorted(samples, key=place)


def _assigned_splits(
    good: list[ScannedImage], spec: DataConfig, seed: int
) -> dict[tuple[str, str], str]:
    """Split of every (split source, content), where a part of the source becomes another split."""
    wanted = (
        ("val", spec.val, spec.val_fraction, "train"),
        ("test", spec.test, spec.test_fraction, spec.test_from),
    )
    assigned = {}
    for source in ("train", "val"):
        fractions = {s: share for s, path, share, of in wanted if path is None and of == source}
        members = [(ref.label, sha256) for ref, sha256, _ in good if ref.split_source == source]
        for content, split in assign_splits(members, fractions, seed).items():
            assigned[source, content] = source if split == "train" else split
    return assigned


def _with_folds(images: Images, folds: int, seed: int) -> list[Sample]:
    """All samples. Training images have the fold that holds them out."""
    train = images.samples("train")
    _refuse_too_many_folds(images, folds)
    fold_of = assign_folds(((sample.label, sample.sha256) for sample in train), folds, seed)
    with_folds = [replace(sample, fold=fold_of[sample.sha256]) for sample in train]
    others = [split for split in images.split_names if split != "train"]
    return [*with_folds, *(sample for split in others for sample in images.samples(split))]


def _refuse_too_many_folds(images: Images, folds: int) -> None:
    """Refuse more folds than a class has images: every fold must hold out one of every class."""
    contents = {(sample.label, sample.sha256) for sample in images.samples("train")}
    counts = Counter(label for label, _ in contents)
    rarest = min(counts, key=lambda label: (counts[label], label))
    count = counts[rarest]
    if folds > count:
        remedy = f"set data.folds to at most {count}" if count > 1 else "leave data.folds out"
        raise UserError(
            f"data.folds={folds} needs so many different training images of every class, but "
            f"class {images.classes[rarest]!r} has {count} after val and test were set aside; "
            f"{remedy}, or add images"
        )


def _corrupt_warning(broken: list[ScannedImage]) -> list[str]:
    if not broken:
        return []
    names = ", ".join(map(_with_fault, broken[:5])) + (", ..." if len(broken) > 5 else "")
    verb = "image does" if len(broken) == 1 else "images do"
    return [f"{len(broken)} {verb} not decode and belong to no split: {names}"]


def _with_fault(image: ScannedImage) -> str:
    return image.ref.key if image.fault == DAMAGED else f"{image.ref.key} ({image.fault})"


def _overlap_warnings(images: Images) -> list[str]:
    """Warnings about equal images in two splits or two classes, which only the user can correct."""
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
        warnings.append(f"{contradicting} image(s) are in more than one class")
    return warnings


def _gap_warnings(images: Images) -> list[str]:
    """Warnings about classes that a split has no image of. For ood this is usual."""
    warnings = []
    for split in ("train", "val", "test") if images.count("train") else ("val", "test"):
        counts = images.class_counts(split)
        names = [name for name, n in zip(images.classes, counts, strict=True) if not n]
        if names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            warnings.append(f"{split} has no image of {len(names)} class(es): {listed}")
    return warnings
