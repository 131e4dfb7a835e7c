"""Files of every given split: patterns of shards or Parquet files, expanded."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from workers.config.data import DataConfig
from workers.data.remote_files import Files, is_http, is_remote, join, public_uri
from workers.data.sources.image_ref import first_few
from workers.errors import UserError, first_line

Indexed = TypeVar("Indexed")

MAX_FILES = 1_000_000
"""Most names that one pattern may stand for."""
MAX_PATTERN, MAX_BRACES, MAX_DIGITS = 4096, 16, 18
"""Most characters, pairs of braces, and digits of a number in a pattern."""


class DataFile(NamedTuple):
    split_source: str
    setting: str
    """Setting that names the file, e.g. `data.val`."""
    name: str
    """Path relative to data.root, with which the keys of its samples start."""
    uri: str


def data_root(spec: DataConfig) -> str:
    """Absolute local path, or URI. Raises UserError if there is no such folder."""
    if spec.root is None:
        inside = {"folder": ", each with one folder of images per class"}.get(spec.source, "")
        raise UserError(
            "data.root is not set; give data.root=FOLDER, the folder that data.train (here "
            f"{list(spec.train.values())}) and data.ood (here {list(spec.ood.values())}) are in"
            f"{inside}"
        )
    _refuse_pipe("data.root", spec.root)
    if is_remote(spec.root):
        return spec.root
    root = join(spec.root, ".")
    if not os.path.isdir(root):
        raise UserError(f"data.root {root} is not a folder; give the folder of the images")
    return root


def report_splits(spec: DataConfig) -> Iterator[tuple[str, str, str]]:
    """(split, setting, path) of all given splits but `train`."""
    if spec.val is not None:
        yield "val", "data.val", spec.val
    if spec.test is not None:
        yield "test", "data.test", spec.test
    for name, path in spec.ood.items():
        yield f"ood:{name}", f"data.ood.{name}", path


def data_files(spec: DataConfig, files: Files, root: str, suffix: str) -> list[DataFile]:
    """Every file of every given split, in the order of the patterns. UserError if one repeats."""
    trains = [("train", "data.train", pattern) for pattern in spec.train.values()]
    named: dict[str, DataFile] = {}
    for split, setting, pattern in [*trains, *report_splits(spec)]:
        for name in _expand(files, root, setting, pattern, suffix):
            file = DataFile(split, setting, _name(root, name), join(root, name))
            real = file.uri if is_remote(file.uri) else os.path.realpath(file.uri)
            if same := named.get(real):
                raise UserError(
                    f"{setting} names {file.name}, which {same.setting} already has; "
                    "name every file once"
                )
            named[real] = file
    return list(named.values())


def map_files(
    files: Files,
    root: str,
    data_files: list[DataFile],
    index: Callable[[DataFile], Indexed],
    suffix: str,
) -> Iterator[Indexed]:
    """`index` of every file, in order, several at a time.

    Raises UserError for a missing file, and for a local one that cannot be read.
    """

    def indexed(file: DataFile) -> Indexed:
        try:
            return index(file)
        except FileNotFoundError as error:
            raise UserError(
                f"{file.setting} names {file.name}, which is not in data.root {public_uri(root)}"
                f"{_existing_files(files, root, suffix)}"
            ) from error
        except OSError as error:
            if is_remote(file.uri):
                raise
            raise UserError(
                f"{file.setting} names {file.name}, which cannot be read "
                f"({error.strerror or first_line(error)}); copy or write it again"
            ) from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(indexed, data_files)


def _expand(files: Files, root: str, setting: str, pattern: str, suffix: str) -> list[str]:
    """Names of a pattern: braces are expanded as in webdataset, then `*`."""
    from webdataset.shardlists import expand_urls

    _refuse_pipe(setting, pattern)
    _refuse_many(setting, pattern)
    try:
        names: list[str] = expand_urls(pattern)
    except (ValueError, AssertionError) as error:  # AssertionError: of a variable that is not set
        raise UserError(f"{setting} {pattern!r}: {error}; write e.g. {{000..099}}") from error
    if not is_remote(join(root, pattern)) and os.path.isdir(join(root, pattern)):
        raise UserError(
            f"{setting} {pattern!r} is a folder; name its files, e.g. "
            f"{setting}=train-{{000..099}}{suffix}{_existing_files(files, root, suffix)}"
        )
    expanded = []
    for name in names:
        matching = files.matching(root, name) if "*" in name else [name]
        if not matching:
            raise UserError(
                f"{setting} {pattern!r} matches no file in data.root {public_uri(root)}"
                f"{_existing_files(files, root, suffix)}"
            )
        expanded += matching
    return expanded


def _refuse_many(setting: str, pattern: str) -> None:
    """Refuse, before anything is expanded, a pattern that stands for too many names."""
    if len(pattern) > MAX_PATTERN or pattern.count("{") > MAX_BRACES:
        raise UserError(
            f"{setting} {pattern!r} has {len(pattern):,} characters and {pattern.count('{')} "
            f"braces; write at most {MAX_PATTERN:,} and {MAX_BRACES}, and list several patterns"
        )
    if "\0" in pattern:
        raise UserError(f"{setting} {pattern!r} has a zero byte; a path has none")
    count = _most_names(pattern)
    if count > MAX_FILES:
        raise UserError(
            f"{setting} {pattern!r} stands for {count:,} files, more than {MAX_FILES:,}; write "
            "the numbers of the files that there are, as in {000..099}"
        )


def _most_names(pattern: str) -> int:
    """An upper bound of the names that a pattern expands to: the product over its braces."""
    count, groups = 1, [1]
    for low, high in re.findall(r"\{(-?[0-9]+)\.\.(-?[0-9]+)", pattern):
        if max(len(low), len(high)) > MAX_DIGITS:
            return sys.maxsize
        count *= abs(int(high) - int(low)) + 1
    for character in pattern:
        if character == "{":
            groups.append(1)
        elif character == "," and len(groups) > 1:
            groups[-1] += 1
        elif character == "}" and len(groups) > 1:
            count *= groups.pop()
    return count


def _refuse_pipe(setting: str, pattern: str) -> None:
    if pattern.startswith("pipe:"):
        raise UserError(
            f"{setting} {pattern!r} is a shell command, which is not run, because images cannot be "
            "read from a pipe by position; give the path or URI of the files"
        )


def _name(root: str, name: str) -> str:
    """Path relative to the root, or the whole path of a file elsewhere."""
    uri = join(root, name)
    if not is_remote(uri) and not is_remote(root):
        inside = os.path.relpath(uri, root)
        return uri if inside.startswith("..") else inside
    return public_uri(uri) if "://" in name else name


def _existing_files(files: Files, root: str, suffix: str) -> str:
    """List of the files there are, for a message; empty for http, which cannot list."""
    if is_http(root):
        return ""
    return f"; there are {first_few(files.matching(root, f'*{suffix}')) or 'none'}"
