"""Cached predictions: the logits of a model on a split, in a Parquet file.

val.parquet            key, label, logits     read whole, by scores, ensembles and the analysis
val.outcomes.parquet   hit, confidence        a few bytes per image, to sort images by hardness
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import softmax

from workers.storage.layout import outcomes_path, predictions_path
from workers.storage.store import CorruptFile, MissingFile, Store
from workers.types import SELECTION, FileInfo


def write_predictions(
    store: Store,
    checkpoint_id: str,
    split: str,
    keys: list[str],
    labels: np.ndarray,
    logits: np.ndarray,
) -> dict[str, FileInfo]:
    """Write columns key (string), label (int32), logits (list of float32), in split order; for the
    selection split also its outcomes. Returns the files by path."""
    flat = pa.array(np.ascontiguousarray(logits, np.float32).reshape(-1))
    columns = {
        "key": pa.array(keys, pa.string()),
        "label": pa.array(labels.astype(np.int32)),
        "logits": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
    }
    path = predictions_path(checkpoint_id, split)
    files = {path: _write(store, path, columns)}
    if split == SELECTION:
        path = outcomes_path(checkpoint_id, split)
        hit, confidence = outcomes(labels, np.asarray(logits, np.float32))
        columns = {"hit": pa.array(hit), "confidence": pa.array(confidence)}
        files[path] = _write(store, path, columns)
    return files


def read_predictions(
    store: Store, checkpoint_id: str, split: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(keys, labels int64 (N,), logits float32 (N, C)), through the cache of the node.

    Raises:
        MissingFile: there are none.
        CorruptFile: they are not what was written.
    """
    table = _read(store, predictions_path(checkpoint_id, split), ["key", "label", "logits"])
    column = table["logits"].combine_chunks()
    values = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return table["key"].to_pylist(), table["label"].to_numpy().astype(np.int64), values


def read_outcomes(store: Store, checkpoint_id: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(hit bool (N,), probability of the label float64 (N,)); errors as in `read_predictions`.

    Stores of earlier versions have no such file: then both are computed from the logits.
    """
    path = outcomes_path(checkpoint_id, split)
    if not store.is_expected(path) and not store.exists(path):
        _, labels, logits = read_predictions(store, checkpoint_id, split)
        return outcomes(labels, logits)
    table = _read(store, path, ["hit", "confidence"])
    return np.array(table["hit"].to_pylist(), bool), table["confidence"].to_numpy()


def outcomes(labels: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hit bool (N,), probability of the label float64 (N,)) of (N, C) logits. An image with a NaN
    is no hit."""
    probability = softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return (logits.argmax(axis=1) == labels) & ~np.isnan(logits).any(axis=1), probability


def _write(store: Store, path: str, columns: dict[str, pa.Array]) -> FileInfo:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    content = buffer.getvalue()
    store.write(path, content)
    return FileInfo(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _read(store: Store, path: str, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(_local(store, path)) as file:
            table = file.read(columns).combine_chunks()
    except (pa.ArrowException, KeyError) as error:
        raise CorruptFile(f"{path} in {store} is not a Parquet file of predictions") from error
    store.on_bytes()
    return table


def _local(store: Store, path: str) -> Path:
    try:
        return store.fetch(path)
    except FileNotFoundError as error:
        raise MissingFile(f"{path} in {store} is missing") from error
