"""An image before it was looked at: where its bytes lie, and what they shall be recognised as."""

from typing import NamedTuple, Protocol


class ImageRef(NamedTuple):
    """`pool` is the split it comes from, `train` before `val` and `test` are set aside."""

    split_source: str
    key: str
    path: str
    """Absolute, or a URI; empty for a bundled digit."""
    label: int
    offset: int = 0
    """Of its first byte in the file; of a Parquet file, its row."""
    size: int | None = None
    """Bytes; None for all of the file, or of the row."""


class LabelledRef(NamedTuple):
    """Likewise, with the label as its file has it: a whole number or a class name."""

    split_source: str
    key: str
    path: str
    label: int | str
    offset: int = 0
    size: int | None = None


class Reader(Protocol):
    """Encoded bytes of an image. Raises OSError where they are gone."""

    def read(self, uri: str, offset: int, size: int | None) -> bytes: ...


def first_few(names: list[str] | tuple[str, ...]) -> str:
    """The first few, for a message."""
    shown = ", ".join(names[:8])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 8 else shown
