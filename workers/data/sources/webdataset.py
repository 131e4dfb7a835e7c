"""Tar shards of webdataset, indexed once, so that every image can be read by its position.

    shard -> headers -> members of one key: image and label -> LabelledRef(key, offset, size)

Nothing is extracted, unpickled or run. Order, splits and resume are those of files in a folder.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from workers.config.data import DataConfig
from workers.data.remote_files import Files, is_remote, join
from workers.data.sources.classes import class_list, read_class_list, to_class_indices
from workers.data.sources.folder import EXTENSIONS
from workers.data.sources.image_ref import ImageRef, LabelledRef
from workers.data.sources.split_files import DataFile, data_files, data_root, map_files
from workers.errors import UserError, first_line

IMAGE_SUFFIXES = {suffix.removeprefix(".") for suffix in EXTENSIONS}
LABEL_SUFFIXES = ("cls", "json")
MAX_LABEL_BYTES = {"cls": 10_000, "json": 16 << 20}
"""Bytes of the longest label: a number or a name, or a document that has it."""
JSON_KEYS = ("label", "cls", "class")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
TAR_BLOCK = 512
"""Bytes of a tar block."""


@dataclass
class _Sample:
    """(offset, size) of the members of one key, by suffix."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        return [suffix for suffix in self.members if suffix in IMAGE_SUFFIXES]


def find_in_shards(
    spec: DataConfig, files: Files, touch: Callable[[], object]
) -> tuple[tuple[str, ...], list[ImageRef]]:
    """Class names in order, and every image of every given split."""
    root = data_root(spec)
    shards = data_files(spec, files, root, ".tar")
    given = class_list(spec, files, root) or _neighbouring_class_list(shards[0], files)

    def index(shard: DataFile) -> list[LabelledRef]:
        return _index(shard, files, touch)

    indexed = map_files(files, root, shards, index, ".tar")
    images = [image for images_of_shard in indexed for image in images_of_shard]
    return to_class_indices(images, given)


def _neighbouring_class_list(shard: DataFile, files: Files) -> tuple[str, ...] | None:
    body, mark, query = shard.uri.partition("?") if is_remote(shard.uri) else (shard.uri, "", "")
    folder = body.rpartition("/")[0] + mark + query
    try:
        return read_class_list(files, join(folder, "classes.json"))
    except FileNotFoundError:
        return None


def _index(shard: DataFile, files: Files, touch: Callable[[], object]) -> list[LabelledRef]:
    """Every image of a shard. Raises UserError for a shard that cannot be used."""
    images = []
    with files.open(shard.uri) as file:
        _refuse_compressed(shard, file)
        for sample in _samples(shard, _members(shard, file)):
            touch()
            if image := _labelled(shard, sample, file):
                images.append(image)
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(
            f"shard {shard.name} holds no samples; it needs images ({suffixes}), each with a .cls "
            "or .json member of the same key"
        )
    return images


def _refuse_compressed(shard: DataFile, file: BinaryIO) -> None:
    begin = file.read(6)
    for magic, how in COMPRESSED.items():
        if begin.startswith(magic):
            raise UserError(
                f"shard {shard.name} is compressed ({how}), so its images cannot be read by "
                "position; decompress it, since images are compressed already"
            )
    file.seek(0)


def _members(shard: DataFile, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Headers of the regular files of a tar, up to its end mark."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  nothing to close
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all of them
            if not member.isdir():
                _refuse_unsafe(shard, member)
                yield member
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        # Beside TarError: of sizes and times that are none, and of headers without end.
        if isinstance(error, UserError):
            raise
        if str(error) == "unexpected end of data":
            raise UserError(_truncated(shard, file)) from error
        raise UserError(
            f"shard {shard.name} is not a tar file ({first_line(error)}); write it with webdataset "
            "or tar"
        ) from error
    # tarfile takes a broken header for the end, which in fact is a block of zeros.
    file.seek(tar.offset)
    if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise UserError(_truncated(shard, file))


def _truncated(shard: DataFile, file: BinaryIO) -> str:
    return (
        f"shard {shard.name} is truncated or damaged: it has {file.seek(0, 2)} bytes and no end "
        "mark after its last complete member; copy or write it again"
    )


def _refuse_unsafe(shard: DataFile, member: tarfile.TarInfo) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(
            f"shard {shard.name} has a member {member.name!r} whose path leads out of it; "
            "write it again with plain names"
        )
    try:
        member.name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"shard {shard.name} has a member {member.name!r} whose name is not UTF-8; write it "
            "again with such names"
        ) from error
    if member.size < 0:
        raise UserError(
            f"shard {shard.name} has a member {member.name!r} of {member.size} bytes; write it "
            "again"
        )
    if not member.isreg() or member.issparse():
        raise UserError(
            f"shard {shard.name} has a member {member.name!r} that is a link, a device or sparse; "
            "write it again with regular files"
        )


def _samples(shard: DataFile, members: Iterator[tarfile.TarInfo]) -> Iterator[_Sample]:
    """Samples of neighbouring members with one key, grouped as in webdataset."""
    from webdataset.tariterators import base_plus_ext

    seen: set[str] = set()
    sample: _Sample | None = None
    for member in members:
        key, suffix = base_plus_ext(member.name)
        if key is None or re.match(r"__[^/]*__($|/)", member.name):
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            if key in seen:
                raise UserError(_repeated_key(shard, key))
            seen.add(key)
            sample = _Sample(key)
        if suffix.lower() in sample.members:
            raise UserError(_repeated_key(shard, key))
        sample.members[suffix.lower()] = (member.offset_data, member.size)
    if sample is not None:
        yield sample


def _repeated_key(shard: DataFile, key: str) -> str:
    return (
        f"shard {shard.name} has the key {key!r} twice; give every sample a key of its own, its "
        "members side by side"
    )


def _labelled(shard: DataFile, sample: _Sample, file: BinaryIO) -> LabelledRef | None:
    """The image of a sample. None: it has neither image nor label."""
    suffix = next((suffix for suffix in LABEL_SUFFIXES if suffix in sample.members), None)
    value = None
    if suffix is not None:
        start, length = sample.members[suffix]
        _refuse_long_label(shard, sample, suffix, length)
        file.seek(start)
        value = _label(suffix, file.read(length))
    if not sample.images and value is None:
        return None
    if len(sample.images) != 1:
        raise UserError(
            f"sample {sample.key!r} of shard {shard.name} has {len(sample.images)} images among "
            f"its members ({', '.join(sample.members)}); give it one"
        )
    if value is None:
        where = f" in its .{suffix} member" if suffix else ""
        raise UserError(
            f"sample {sample.key!r} of shard {shard.name} has no label{where}; add a .cls member "
            f"with a whole number or a class name, or a .json with it under {', '.join(JSON_KEYS)}"
        )
    offset, size = sample.members[sample.images[0]]
    return LabelledRef(
        shard.split_source, f"{shard.name}/{sample.key}", shard.uri, value, offset, size
    )


def _refuse_long_label(shard: DataFile, sample: _Sample, suffix: str, length: int) -> None:
    if length > MAX_LABEL_BYTES[suffix]:
        raise UserError(
            f"the .{suffix} member of sample {sample.key!r} of shard {shard.name} has {length:,} "
            f"bytes; a label has at most {MAX_LABEL_BYTES[suffix]:,}"
        )


def _label(suffix: str, content: bytes) -> int | str | None:
    """A whole number or a name. None: there is neither."""
    try:
        text = content.decode().strip()
        value = text if suffix == "cls" else json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in JSON_KEYS if key in value), None)
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value) else value or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
