"""Cached predictions: the logits of a model on a split, in a Parquet file."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.storage.layout import predictions_path
from workers.storage.store import Store


def write_predictions(
    store: Store,
    checkpoint_id: str,
    split: str,
    keys: list[str],
    labels: np.ndarray,
    logits: np.ndarray,
) -> None:
    """Write columns key (string), label (int32), logits (list of float32), in split order."""
    flat = pa.array(np.ascontiguousarray(logits, np.float32).reshape(-1))
    columns = {
        "key": pa.array(keys, pa.string()),
        "label": pa.array(labels.astype(np.int32)),
        "logits": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    store.write(predictions_path(checkpoint_id, split), buffer.getvalue())


def read_predictions(
    store: Store, checkpoint_id: str, split: str
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(keys, labels int64 (N,), logits float32 (N, C)). Raises FileNotFoundError."""
    content = store.read(predictions_path(checkpoint_id, split))
    table = pq.read_table(io.BytesIO(content)).combine_chunks()
    column = table["logits"].combine_chunks()
    values = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return table["key"].to_pylist(), table["label"].to_numpy().astype(np.int64), values
