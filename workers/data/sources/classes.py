"""Class names: their order, and the class of a label in a file."""

import json
from collections import Counter

from workers.config.data import DataConfig
from workers.data.remote_files import Files, join, public_uri
from workers.data.sources.image_ref import ImageRef, LabelledRef, first_few
from workers.errors import UserError, did_you_mean

MAX_NAME = 1000
"""Characters of the longest class name."""


def class_list(spec: DataConfig, files: Files, root: str) -> tuple[str, ...] | None:
    """Class names of `data.classes`. None: it is not set."""
    if spec.classes is None:
        return None
    if not isinstance(spec.classes, str):
        return _checked(spec.classes, "data.classes")
    path = join(root, spec.classes)
    try:
        return read_class_list(files, path)
    except FileNotFoundError as error:
        raise UserError(
            f"data.classes names {public_uri(path)}, which is not there; give the class names, "
            "or a JSON list or text file of them relative to data.root"
        ) from error


def read_class_list(files: Files, path: str) -> tuple[str, ...]:
    """Class names of a JSON list, or of a text file with a name per line."""
    try:
        text = files.read(path).decode()
        names = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.split("\n")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{public_uri(path)} is neither JSON nor text ({error}); write a list of class names"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{public_uri(path)} is not a JSON list of class names; make it one")
    return _checked([name.strip() for name in names if name.strip()], public_uri(path))


def _checked(names: list[str] | tuple[str, ...], where: str) -> tuple[str, ...]:
    if len(names) < 2:
        raise UserError(
            f"{where} has {len(names)} class(es) ({first_few(names) or 'none'}); "
            "a classifier needs at least two"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{where} lists the class {repeated[0]!r} twice; list every class once")
    if long := [name for name in names if len(name) > MAX_NAME]:
        raise UserError(
            f"{where} has a class name of {len(long[0]):,} characters ({long[0][:40]!r}...); "
            f"write at most {MAX_NAME}"
        )
    return tuple(names)


def to_class_indices(
    images: list[LabelledRef], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[ImageRef]]:
    """Class names, and images with the index of their class.

    With given classes, a number is an index into them and a text one of their names. Otherwise the
    classes are the labels of the training images: numbers in order, or sorted names.
    """
    if given is None:
        classes, numbers = _classes_of([image for image in images if image.split_source == "train"])
    else:
        classes, numbers = given, list(range(len(given)))
    index: dict[int | str, int] = {name: i for i, name in enumerate(classes)}
    index.update((number, i) for i, number in enumerate(numbers))
    refs = []
    for image in images:
        if image.label not in index:
            raise UserError(_unknown_label(image, classes))
        refs.append(ImageRef(*image[:3], index[image.label], *image[4:]))
    return classes, refs


def _classes_of(images: list[LabelledRef]) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes, and in the same order their numbers, if labels are numbers."""
    labels = {image.label: image.key for image in reversed(images)}
    numbers = sorted(label for label in labels if isinstance(label, int))
    names = sorted(label for label in labels if isinstance(label, str))
    if numbers and names:
        raise UserError(
            f"sample {labels[names[0]]} is labelled {names[0]!r}, but {labels[numbers[0]]} is "
            f"labelled {numbers[0]}; list the class names in data.classes"
        )
    if numbers and numbers[0] < 0:
        raise UserError(
            f"sample {labels[numbers[0]]} has the label {numbers[0]}; labels count from 0: give it "
            "one, or leave it out"
        )
    classes = _checked([str(label) for label in (numbers or names)], "data.train")
    return classes, numbers


def _unknown_label(image: LabelledRef, classes: tuple[str, ...]) -> str:
    similar = did_you_mean(image.label, classes) if isinstance(image.label, str) else ""
    hint = f" ({similar})" if similar else ""
    return (
        f"sample {image.key} has the label {image.label!r}, which is outside the {len(classes)} "
        f"classes ({first_few(classes)}); correct it{hint}, or list every class in data.classes"
    )
