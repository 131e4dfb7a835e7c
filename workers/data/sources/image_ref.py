"""References to images that were not read yet: the position of their bytes, and their label."""

from typing import NamedTuple, Protocol


class ImageRef(NamedTuple):
    """An image with the index of its class."""

    split_source: str
    """The given split. Parts of it may become another split: those of `train`, `val` and `test`."""
    key: str
    path: str
    """Absolute path or URI. Empty for a bundled digit."""
    label: int
    offset: int = 0
    """Position of the first byte in the file, or the row of a Parquet file."""
    size: int | None = None
    """Bytes. None: the whole file or row."""


class LabelledRef(NamedTuple):
    """An image with the label in its file: a whole number or a class name."""

    split_source: str
    key: str
    path: str
    label: int | str
    offset: int = 0
    size: int | None = None


class Reader(Protocol):
    """Reader of the encoded bytes of an image. Raises OSError if they are gone."""

    def read(self, uri: str, offset: int, size: int | None) -> bytes: ...


def first_few(names: list[str] | tuple[str, ...]) -> str:
    """The first names and their number, for a message."""
    text = ", ".join(names[:8])
    return f"{text}, ... ({len(names)} in all)" if len(names) > 8 else text
