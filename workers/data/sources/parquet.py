"""Parquet files with columns of encoded images and labels, as on Hugging Face hubs.

file -> label column -> LabelledRef(key, row)        row -> (row group, row in it) -> image bytes
"""

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workers.config.data import DataConfig
from workers.data.remote_files import Files, public_uri
from workers.data.sources.classes import class_list, to_class_indices
from workers.data.sources.image_ref import ImageRef, LabelledRef, first_few
from workers.data.sources.split_files import DataFile, data_files, data_root, map_files
from workers.errors import UserError, first_line

CACHED_BYTES = 256 << 20
"""Bytes of image columns that a process keeps in memory. The two read last are always kept."""


def find_in_parquet(
    spec: DataConfig, files: Files, touch: Callable[[], object]
) -> tuple[tuple[str, ...], list[ImageRef]]:
    """Class names in order, and every image of every given split."""
    root = data_root(spec)
    parquet_files = data_files(spec, files, root, ".parquet")

    def index(file: DataFile) -> list[LabelledRef]:
        touch()
        return _index(file, spec, files)

    given = class_list(spec, files, root)
    indexed = map_files(files, root, parquet_files, index, ".parquet")
    images = [image for images_of_file in indexed for image in images_of_file]
    hub_classes = _hub_classes(parquet_files[0], files, spec.label_column) if not given else None
    return to_class_indices(images, given or hub_classes)


class RowReader:
    """Reader of the image in a row. It reads whole row groups and keeps the last ones."""

    def __init__(self, files: Files, column: str) -> None:
        self._files, self._column = files, column
        self._layouts: dict[str, tuple[pq.FileMetaData, list[int]]] = {}
        self._groups: OrderedDict[tuple[str, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["RowReader"], tuple[Files, str]]:
        return RowReader, (self._files, self._column)

    def read(self, uri: str, offset: int, size: int | None = None) -> bytes:
        """The image of row `offset`. Raises UserError if there is none."""
        with self._lock:
            metadata, ends = self._layout(uri)
            group = bisect_right(ends, offset)
            if group == len(ends):
                raise OSError(f"{public_uri(uri)} has no row {offset} any more")
            try:
                column = self._group(uri, group, metadata)
            except (pa.ArrowException, KeyError) as error:
                raise OSError(f"{public_uri(uri)} is damaged: {first_line(error)}") from error
        content = column[offset - (ends[group - 1] if group else 0)].as_py()
        if content is None:
            raise UserError(
                f"row {offset} of {public_uri(uri)} has no bytes in column {self._column!r}; "
                "leave the row out, or store the images themselves"
            )
        return bytes(content)

    def _layout(self, uri: str) -> tuple[pq.FileMetaData, list[int]]:
        """Metadata, and the end of every row group as a row number."""
        if uri not in self._layouts:
            with self._files.open(uri) as file:
                metadata = pq.read_metadata(file)
            counts = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            self._layouts[uri] = metadata, list(accumulate(counts))
        return self._layouts[uri]

    def _group(self, uri: str, group: int, metadata: pq.FileMetaData) -> pa.ChunkedArray:
        key = (uri, group)
        if key not in self._groups:
            self._groups[key] = self._read(uri, group, metadata)
        self._groups.move_to_end(key)
        while len(self._groups) > 2 and self._num_bytes() > CACHED_BYTES:
            self._groups.popitem(last=False)
        return self._groups[key]

    def _read(self, uri: str, group: int, metadata: pq.FileMetaData) -> pa.ChunkedArray:
        with self._files.open(uri) as file:
            table = pq.ParquetFile(file, metadata=metadata).read_row_group(
                group, columns=[_image_path(metadata.schema.to_arrow_schema(), self._column)]
            )
        column = table[self._column]
        return pc.struct_field(column, "bytes") if _is_struct(column.type) else column

    def _num_bytes(self) -> int:
        return sum(int(column.nbytes) for column in self._groups.values())


def _index(file: DataFile, spec: DataConfig, files: Files) -> list[LabelledRef]:
    """Every row with its label. No image is read."""
    with files.open(file.uri) as opened:
        try:
            return _rows(file, spec, pq.ParquetFile(opened))
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(_damaged(file, error)) from error


def _damaged(file: DataFile, error: Exception) -> str:
    return f"{file.name} is not a whole Parquet file ({first_line(error)}); copy or write it again"


def _rows(file: DataFile, spec: DataConfig, parquet: pq.ParquetFile) -> list[LabelledRef]:
    schema = parquet.schema_arrow
    for setting, column in (("image", spec.image_column), ("label", spec.label_column)):
        if column not in schema.names:
            raise UserError(
                f"{file.name} has no column {column!r}; it has {first_few(schema.names)}: "
                f"set data.{setting}_column to one of them"
            )
        if schema.names.count(column) > 1:
            raise UserError(
                f"{file.name} has several columns {column!r}; rename all but one, or set "
                f"data.{setting}_column"
            )
    _refuse_no_images(file, schema, spec.image_column)
    labels = _labels(file, parquet, spec.label_column)
    if not labels:
        raise UserError(f"{file.name} has no rows; leave it out, or write it again")
    return [
        LabelledRef(file.split_source, f"{file.name}/{row}", file.uri, label, row)
        for row, label in enumerate(labels)
    ]


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_path(schema: pa.Schema, column: str) -> str:
    return f"{column}.bytes" if _is_struct(schema.field(column).type) else column


def _refuse_no_images(file: DataFile, schema: pa.Schema, column: str) -> None:
    kind = schema.field(column).type
    inner = (
        kind.field("bytes").type
        if _is_struct(kind) and kind.get_field_index("bytes") >= 0
        else kind
    )
    if not _is_binary(inner):
        raise UserError(
            f"column {column!r} of {file.name} holds {kind}, not encoded images; it must be "
            "binary, or {bytes, path} as on Hugging Face hubs: set data.image_column"
        )


def _labels(file: DataFile, parquet: pq.ParquetFile, column: str) -> list[int | str]:
    values = parquet.read(columns=[column])[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise UserError(
            f"label column {column!r} of {file.name} holds {kind}; it must hold whole numbers or "
            "class names: set data.label_column"
        )
    labels: list[Any] = values.to_pylist()
    if values.null_count:
        raise UserError(
            f"sample {file.name}/{labels.index(None)} has no label in column {column!r}; "
            "label the row, or leave it out"
        )
    return labels


def _hub_classes(file: DataFile, files: Files, column: str) -> tuple[str, ...] | None:
    """Class names in the metadata of Hugging Face's datasets. None: there are none."""
    with files.open(file.uri) as opened:
        metadata = (pq.ParquetFile(opened).schema_arrow.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        names = json.loads(metadata)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    whole = isinstance(names, list) and len(names) > 1 and all(isinstance(n, str) for n in names)
    return tuple(names) if whole else None
