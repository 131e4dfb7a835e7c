"""Where images come from: class folders on disk, or the digits bundled with scikit-learn."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from workers.spec import DataSpec
from workers.types import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train", "val", "valid", "validation", "test"}


class Found(NamedTuple):
    """An image before it was looked at. `pool` is the split it comes from, `train` before
    `val` and `test` are set aside."""

    pool: str
    key: str
    path: str
    """Absolute; empty for a bundled digit."""
    label: int


def find_images(spec: DataSpec) -> tuple[tuple[str, ...], list[Found]]:
    """Class names in order, and every image of every pool. Raises UserError for what is missing."""
    if spec.source == "digits":
        return _find_digits(spec)
    root = _data_root(spec)
    trains = [_pool_folder(root, "data.train", path) for path in spec.train.values()]
    _refuse_repeated(trains)
    classes = _common_classes(trains)
    found = [image for folder in trains for image in _walk(root, "train", folder, classes)]
    for pool, setting, path in _report_pools(spec):
        folder = _pool_folder(root, setting, path)
        _refuse_unknown_classes(folder, setting, classes)
        found += _walk(root, pool, folder, classes)
    return classes, found


def digit_image(index: int) -> Image.Image:
    """A bundled 8x8 digit as RGB; its 17 grey levels are spread over 0..255."""
    grey = np.round(_digits()[0][index] * (255 / 16)).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def _find_digits(spec: DataSpec) -> tuple[tuple[str, ...], list[Found]]:
    for setting in ("root", "train", "val", "test", "ood"):
        if getattr(spec, setting) != DataSpec.model_fields[setting].default:
            raise UserError(
                f"data.{setting} has no meaning with data.source=digits, which needs no folder; "
                "remove it, or set data.source=folder"
            )
    labels = _digits()[1]
    found = [Found("train", str(i), "", int(label)) for i, label in enumerate(labels)]
    return tuple(str(digit) for digit in range(10)), found


def _data_root(spec: DataSpec) -> Path:
    if spec.root is None:
        raise UserError(
            "data.root is not set; give data.root=FOLDER, the folder that data.train (here "
            f"{list(spec.train.values())}) and data.ood (here {list(spec.ood.values())}) lie in, "
            "each with one folder of images per class"
        )
    root = Path(spec.root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder; give the folder the images lie in")
    return root


def _report_pools(spec: DataSpec) -> Iterator[tuple[str, str, str]]:
    """(pool, setting, path) of all pools that are given beside `train`."""
    if spec.val is not None:
        yield "val", "data.val", spec.val
    if spec.test is not None:
        yield "test", "data.test", spec.test
    for name, path in spec.ood.items():
        yield f"ood:{name}", f"data.ood.{name}", path


def _pool_folder(root: Path, setting: str, path: str) -> Path:
    folder = Path(os.path.normpath(root / Path(path).expanduser()))
    if not folder.is_dir():
        raise UserError(
            f"{setting} {path!r} is not a folder below data.root {root}; "
            f"there are {_some(class_folders(root)) or 'no folders'}"
        )
    return folder


def _refuse_repeated(folders: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (real := folder.resolve()) in seen:
            raise UserError(f"data.train names {folder} twice; name every folder once")
        seen[real] = folder


def _common_classes(trains: list[Path]) -> tuple[str, ...]:
    """Class names, sorted; every training folder must have all of them."""
    per_folder = {folder: class_folders(folder) for folder in trains}
    classes = sorted({name for names in per_folder.values() for name in names})
    _refuse_splits_as_classes(trains, classes)
    for folder, names in per_folder.items():
        if missing := [name for name in classes if name not in names]:
            raise UserError(
                f"data.train folder {folder} has no class folder {missing[0]!r}, which another "
                "training folder has; give all training folders the same class folders"
            )
    if len(classes) < 2:
        raise UserError(
            f"data.train folder {trains[0]} has {len(classes)} class folder(s) "
            f"({_some(classes) or 'none'}); a classifier needs at least two"
        )
    return tuple(classes)


def _refuse_splits_as_classes(trains: list[Path], classes: list[str]) -> None:
    if classes and {name.lower() for name in classes} <= SPLIT_NAMES:
        raise UserError(
            f"data.train folder {trains[0]} holds the splits {_some(classes)} and no class "
            f"folders; set data.train={classes[0]} and so on"
        )


def _refuse_unknown_classes(folder: Path, setting: str, classes: tuple[str, ...]) -> None:
    names = class_folders(folder)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"{setting} folder {folder} has a class folder {unknown[0]!r} that data.train does "
            f"not have; its classes are {_some(classes)}"
        )
    if not names:
        raise UserError(
            f"{setting} folder {folder} has no class folders; it needs some of {_some(classes)}"
        )


def _walk(root: Path, pool: str, folder: Path, classes: tuple[str, ...]) -> Iterator[Found]:
    for label, name in enumerate(classes):
        class_folder = folder / name
        if not class_folder.is_dir():
            continue
        files = image_files(class_folder)
        if not files:
            raise UserError(
                f"class folder {class_folder} holds no images ({', '.join(EXTENSIONS)}); "
                "fill it, or remove it everywhere"
            )
        for file in files:
            yield Found(pool, _key(root, pool, folder, file), str(file), label)


def image_files(class_folder: Path) -> list[Path]:
    """Recursively, following links like torchvision's ImageFolder, in a fixed order."""
    return sorted(
        Path(parent) / file
        for parent, _, files in os.walk(class_folder, followlinks=True)
        for file in files
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    )


def _key(root: Path, pool: str, folder: Path, file: Path) -> str:
    """Relative to data.root; a pool given by an absolute path elsewhere brings its own name."""
    if file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return f"{pool}/{file.relative_to(folder).as_posix()}"


def class_folders(parent: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in parent.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 8 else shown
