"""Validation errors as one sentence: which key, the value seen, and the remedy."""

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from workers.errors import UserError

OTHER_NAMES = {
    "learning_rate": "lr",
    "label_smoothing": "smoothing",
    "optimizer": "opt",
    "scheduler": "sched",
    "lr_scheduler": "sched",
    "wd": "weight_decay",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "batch": "batch_size",
    "bs": "batch_size",
    "gradient_accumulation_steps": "grad_accum_steps",
    "auto_augment": "aa",
    "random_erasing": "reprob",
    "img_size": "image_size",
    "precision": "amp_dtype",
    "arch": "name",
    "gpus": "gpus_per_run",
    "max_runs": "num_runs",
    "n_runs": "num_runs",
    "max_concurrent": "max_concurrent_runs",
    "ema": "model_ema_decay",
    "ema_decay": "model_ema_decay",
    "early_stopping": "patience",
    "num_folds": "folds",
    "k_folds": "folds",
    "num_workers": "workers",
    "drop_path_rate": "drop_path",
    "grad_clip": "clip_grad",
    "gradient_checkpointing": "grad_checkpointing",
    "horizontal_flip": "hflip",
}
"""Names of our keys in other tools, which spelling distance alone would not find."""


def config_error(
    error: ValidationError, schema: type[BaseModel], document: Any, source: str, prefix: str = ""
) -> UserError:
    """The first error of a validation, unknown keys before others, and the number of others.

    `document` is the tree that was validated. `prefix` is its dotted path if it is only a part of
    the configuration.
    """
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    places = [tuple(_look_up(document, e)[0]) for e in errors]
    same = [e for e, place in zip(errors, places, strict=True) if place == places[0]]
    sentence = _sentence(same, schema, document, prefix)
    more = len(set(places)) - 1
    tail = f" ({more} more like this)" if more else ""
    return UserError(f"{source}: {sentence}{tail}")


def nearest(path: str, schema: type[BaseModel]) -> str | None:
    """The valid dotted key that is closest to an unknown one. None: no key is close."""
    steps = path.split(".")
    plain = ".".join(step for step in steps if not step.isdigit())
    section, _, key = plain.rpartition(".")
    valid = list(keys(schema, lists=plain != path))
    key = OTHER_NAMES.get(key, key)
    same_name = [path for path in valid if path.rpartition(".")[2] == key]
    close = sorted(same_name, key=lambda path: path.rpartition(".")[0] != section)
    if not close:
        siblings = [path for path in valid if path.rpartition(".")[0] == section]
        close = difflib.get_close_matches(plain, siblings, 1, 0.7)
    if not close:
        close = difflib.get_close_matches(plain, valid, 1, 0.6)
    if close and close[0].rpartition(".")[0] == section:
        return ".".join([*steps[:-1], close[0].rpartition(".")[2]])
    return close[0] if close else None


def keys(schema: type[BaseModel], prefix: str = "", lists: bool = False) -> Iterator[str]:
    """All dotted keys of a schema, sections included; with `lists`, those of items of lists too."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        if inner := _section(field.annotation, lists):
            yield from keys(inner, f"{prefix}{name}.", lists)


def _section(annotation: Any, lists: bool) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    kinds = (typing.Union, types.UnionType, *([tuple] if lists else []))
    if typing.get_origin(annotation) in kinds:
        inner = (_section(argument, lists) for argument in typing.get_args(annotation))
        return next(filter(None, inner), None)
    return None


def _sentence(errors: list[Any], schema: type[BaseModel], document: Any, prefix: str) -> str:
    """The sentence for all errors at one place: a value of a union has one error per member."""
    error = errors[0]
    steps, seen = _look_up(document, error)
    path = prefix + ".".join(map(str, steps))
    if error["type"] == "extra_forbidden":
        return unknown_key(path, schema)
    if error["type"] == "missing" and steps == list(error["loc"]):
        return f"{path} is missing; pass {path}=VALUE or write it into the file"
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    expected = " or ".join(dict.fromkeys(map(_expected, errors)))
    return f"{path} is {seen!r}, but should be {expected}"


def _expected(error: Any) -> str:
    """The expected kind of value, in terms of YAML."""
    if error["type"] == "missing":
        return "longer"
    if error["type"] == "too_long":
        return f"a list of at most {error['ctx']['max_length']}"
    kinds = {"tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping"}
    text: str = error["msg"].removeprefix("Input should ").removeprefix("be ")
    return kinds.get(error["type"], text)


def unknown_key(path: str, schema: type[BaseModel]) -> str:
    """The sentence for a dotted key that the schema does not have."""
    if close := nearest(path, schema):
        return f"unknown key {path}; did you mean {close}?"
    section = path.rpartition(".")[0]
    siblings = [key for key in keys(schema) if key.rpartition(".")[0] == section]
    valid = ", ".join(siblings or [key for key in keys(schema) if "." not in key])
    return f"unknown key {path}; valid keys: {valid}"


def _look_up(document: Any, error: Any) -> tuple[list[int | str], Any]:
    """The part of an error's location that is in the document, and the value there.

    Pydantic appends names of its own, such as the member of a union, which are not in the document.
    """
    steps: list[int | str] = []
    for step in error["loc"]:
        if isinstance(document, dict) and step in document:
            steps.append(step)
            document = document[step]
        elif isinstance(document, dict) and error["type"] == "missing":
            return [*steps, step], None
        elif isinstance(document, list | tuple) and isinstance(step, int) and step < len(document):
            steps.append(step)
            document = document[step]
        else:
            break
    return steps, document
