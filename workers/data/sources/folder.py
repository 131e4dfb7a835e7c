"""Class folders on a local disk, as for torchvision's ImageFolder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from workers.config.data import DataConfig
from workers.data.remote_files import Files, is_remote
from workers.data.sources.classes import class_list
from workers.data.sources.image_ref import ImageRef, first_few
from workers.data.sources.split_files import data_root, report_splits
from workers.errors import UserError
from workers.storage.local_disk import expanded

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train", "val", "valid", "validation", "test"}


def find_in_folders(
    spec: DataConfig, files: Files, touch: Callable[[], object]
) -> tuple[tuple[str, ...], list[ImageRef]]:
    """Class names in order, and every image of every given split. `touch` is called after each
    class folder."""
    if spec.root is not None and is_remote(spec.root):
        raise UserError(
            "data.root is a URI, but data.source=folder reads local folders; mount it, or pack "
            "the images into shards for data.source=webdataset"
        )
    root = Path(data_root(spec))
    trains = [_split_folder(root, "data.train", path) for path in spec.train.values()]
    _refuse_repeated(trains)
    given = class_list(spec, files, str(root))
    classes = _classes(root, spec, trains) if given is None else given
    for folder in trains if given else ():
        _refuse_unknown_classes(folder, "data.train", classes, "data.classes")
    refs = [ref for folder in trains for ref in _walk(root, "train", folder, classes, touch)]
    listed = "data.classes" if given else "data.train" if trains else "data.val"
    for split, setting, path in report_splits(spec):
        folder = _split_folder(root, setting, path)
        _refuse_unknown_classes(folder, setting, classes, listed)
        refs += _walk(root, split, folder, classes, touch)
    return classes, refs


def _classes(root: Path, spec: DataConfig, trains: list[Path]) -> tuple[str, ...]:
    """Class names of the training folders, or of the selection images if there are none."""
    if trains or spec.val is None:
        return _common_classes(trains, "data.train")
    return _common_classes([_split_folder(root, "data.val", spec.val)], "data.val")


def _split_folder(root: Path, setting: str, path: str) -> Path:
    folder = Path(os.path.normpath(root / expanded(path)))
    if not folder.is_dir():
        raise UserError(
            f"{setting} {path!r} is not a folder below data.root {root}; "
            f"there are {first_few(class_folders(root)) or 'no folders'}"
        )
    return folder


def _refuse_repeated(folders: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (real := folder.resolve()) in seen:
            raise UserError(f"data.train names {folder} twice; name every folder once")
        seen[real] = folder


def _common_classes(trains: list[Path], setting: str) -> tuple[str, ...]:
    """Sorted class names. Every folder must have all of them."""
    per_folder = {folder: class_folders(folder) for folder in trains}
    classes = sorted({name for names in per_folder.values() for name in names})
    _refuse_splits_as_classes(trains, classes, setting)
    for folder, names in per_folder.items():
        if missing := [name for name in classes if name not in names]:
            raise UserError(
                f"{setting} folder {folder} has no class folder {missing[0]!r}, which another "
                "training folder has; give all training folders the same class folders"
            )
    if len(classes) < 2:
        raise UserError(
            f"{setting} folder {trains[0]} has {len(classes)} class folder(s) "
            f"({first_few(classes) or 'none'}); a classifier needs at least two"
        )
    return tuple(classes)


def _refuse_splits_as_classes(trains: list[Path], classes: list[str], setting: str) -> None:
    if classes and {name.lower() for name in classes} <= SPLIT_NAMES:
        raise UserError(
            f"{setting} folder {trains[0]} holds the splits {first_few(classes)} and no class "
            f"folders; set {setting}={classes[0]} and so on"
        )


def _refuse_unknown_classes(
    folder: Path, setting: str, classes: tuple[str, ...], listed: str
) -> None:
    names = class_folders(folder)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"{setting} folder {folder} has a class folder {unknown[0]!r} that {listed} does "
            f"not have; its classes are {first_few(classes)}"
        )
    if not names:
        raise UserError(
            f"{setting} folder {folder} has no class folders; it needs some of {first_few(classes)}"
        )


def _walk(
    root: Path, split: str, folder: Path, classes: tuple[str, ...], touch: Callable[[], object]
) -> Iterator[ImageRef]:
    for label, name in enumerate(classes):
        class_folder = folder / name
        if not class_folder.is_dir():
            continue
        files = image_files(class_folder)
        touch()
        if not files:
            raise UserError(
                f"class folder {class_folder} holds no images ({', '.join(EXTENSIONS)}); "
                "fill it, or remove it everywhere"
            )
        for file in files:
            yield ImageRef(split, _key(root, split, folder, file), str(file), label)


def image_files(class_folder: Path) -> list[Path]:
    """Image files below a folder, sorted. Links are followed, as in torchvision's ImageFolder."""
    return sorted(
        Path(parent) / file
        for parent, _, files in os.walk(class_folder, followlinks=True)
        for file in files
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    )


def _key(root: Path, split: str, folder: Path, file: Path) -> str:
    """Path relative to data.root, or for a folder elsewhere `<split>/<path in the folder>`."""
    if file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return f"{split}/{file.relative_to(folder).as_posix()}"


def class_folders(parent: Path) -> list[str]:
    """Sorted names of the folders in a folder."""
    return sorted(
        entry.name
        for entry in parent.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
