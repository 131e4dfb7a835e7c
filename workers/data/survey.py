"""Survey: look at every image once, refuse what cannot work, and split the rest.

find -> read, hash and decode (threads) -> refuse or warn -> split -> Images
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from workers.data.decode import UNDECODABLE, decode
from workers.data.index import Images, Sample
from workers.data.sources import Found, digit_image, find_images
from workers.data.split import seeded_order, set_aside
from workers.spec import DataSpec
from workers.types import UserError


class Looked(NamedTuple):
    found: Found
    sha256: str
    decodes: bool


def survey(
    spec: DataSpec, seed: int, on_image: Callable[[], None] | None = None
) -> tuple[Images, tuple[str, ...], tuple[str, ...]]:
    """(images by split, keys of corrupt images, warnings).

    Within a split the order is a seeded shuffle, so that its first n images are a fair sample.
    `on_image` is called after every image. Raises UserError, one sentence, for data that cannot
    be used.
    """
    classes, found = find_images(spec)
    looked = _look_at_all(found, on_image)
    corrupt = tuple(look.found.key for look in looked if not look.decodes)
    good = [look for look in looked if look.decodes]
    _refuse_empty_classes(classes, found, good)
    _refuse_shared(good, spec)
    images = Images(classes, _split(good, spec, seed), spec)
    _refuse_empty_splits(images)
    warnings = (*_corrupt_warning(corrupt), *_overlap_warnings(images), *_gap_warnings(images))
    return images, corrupt, warnings


def _look_at_all(found: list[Found], on_image: Callable[[], None] | None) -> list[Looked]:
    looked = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for look in pool.map(_look_at, found):
            looked.append(look)
            if on_image:
                on_image()
    return looked


def _look_at(found: Found) -> Looked:
    if not found.path:
        content = digit_image(int(found.key)).tobytes()
        return Looked(found, hashlib.sha256(content).hexdigest(), True)
    try:
        content = Path(found.path).read_bytes()
    except OSError as error:
        raise UserError(f"image {found.path} cannot be read: {error.strerror or error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        decode(content)
    except UNDECODABLE:
        return Looked(found, sha256, False)
    return Looked(found, sha256, True)


def _refuse_empty_classes(classes: tuple[str, ...], found: list[Found], good: list[Looked]) -> None:
    alive = {(look.found.pool, look.found.label) for look in good}
    for image in found:
        if (image.pool, image.label) not in alive:
            raise UserError(
                f"none of the images of class {classes[image.label]!r} in {image.pool} decodes, "
                f"e.g. {image.path}; replace them, or remove the class folder"
            )


def _refuse_empty_splits(images: Images) -> None:
    for split in ("train", "val"):
        if not images.count(split):
            raise UserError(
                f"no image is left for {split} of {sum(map(images.count, images.split_names))}; "
                "add images, or change data.val_fraction and data.test_fraction"
            )


def _refuse_shared(good: list[Looked], spec: DataSpec) -> None:
    """Selecting on a test image makes its score a lie."""
    if spec.val is None or spec.test is None:
        return
    vals = [look for look in good if look.found.pool == "val"]
    by_content = {look.sha256: look.found for look in vals}
    by_path = {os.path.realpath(look.found.path): look.found for look in vals}
    for look in good:
        if look.found.pool != "test":
            continue
        path = os.path.realpath(look.found.path)
        if twin := by_path.get(path) or by_content.get(look.sha256):
            raise UserError(
                f"the image {twin.key} of data.val is also in data.test, as {look.found.key}; "
                "remove one of the two, or leave out data.val and data.test to have them split"
            )


def _split(good: list[Looked], spec: DataSpec, seed: int) -> list[Sample]:
    fractions = {
        split: fraction
        for split, given, fraction in (
            ("val", spec.val, spec.val_fraction),
            ("test", spec.test, spec.test_fraction),
        )
        if given is None
    }
    pool = [(look.found.label, look.sha256) for look in good if look.found.pool == "train"]
    settled = set_aside(pool, fractions, seed)
    samples = [
        Sample(
            settled[look.sha256] if look.found.pool == "train" else look.found.pool,
            look.found.key,
            look.found.path,
            look.found.label,
            look.sha256,
        )
        for look in good
    ]
    rank = {"train": 0, "val": 1, "test": 2}
    return sorted(
        samples,
        key=lambda s: (rank.get(s.split, 3), s.split, seeded_order(seed, s.sha256), s.key),
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
        warnings.append(f"{contradicting} image(s) lie in more than one class folder")
    return warnings


def _gap_warnings(images: Images) -> list[str]:
    """Classes that a split has no image of; usual for ood, where nothing is said."""
    warnings = []
    for split in ("train", "val", "test"):
        counts = images.class_counts(split)
        names = [name for name, n in zip(images.classes, counts, strict=True) if not n]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            warnings.append(f"{split} has no image of {len(names)} class(es): {shown}")
    return warnings
