"""Evaluate: logits of a model on images, and the predictions kept of them.

uint8 pixels -> batches of EVAL_BATCH -> normalise on the device -> float32 logits -> parquet
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from workers.data import normalise
from workers.storage import Store, predictions_path

EVAL_BATCH = 64
"""Every forward pass sees this many images, the last one padded: the kernels a CPU picks, and so
the last bits of a logit, depend on the batch size."""


def logits(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: dict[str, Any],
    device: str,
    on_batch: Callable[[int], None] | None = None,
    amp_dtype: str = "none",
) -> np.ndarray:
    """float32 (N, C) in eval mode; the model is left in the mode it was in.

    `pixels` uint8 (N, 3, H, W). `on_batch` gets the number of images done so far.
    """
    rows = []
    with _evaluating(model), torch.inference_mode(), _autocast(device, amp_dtype):
        for start in range(0, len(pixels), EVAL_BATCH):
            batch = pixels[start : start + EVAL_BATCH]
            inputs = normalise(_padded(batch).to(device), preprocessing)
            rows.append(model(inputs)[: len(batch)].float().cpu())
            if on_batch:
                on_batch(start + len(batch))
    result: np.ndarray = torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)
    return result


def write_predictions(
    store: Store,
    checkpoint_id: str,
    split: str,
    keys: list[str],
    labels: np.ndarray,
    logits: np.ndarray,
) -> None:
    """key string, label int32, logits fixed_size_list<float32>, in split order."""
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
    """(keys, labels int64 (N,), logits float32 (N, C)). Raises FileNotFoundError if absent."""
    content = store.read(predictions_path(checkpoint_id, split))
    table = pq.read_table(io.BytesIO(content)).combine_chunks()
    column = table["logits"].combine_chunks()
    values = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return table["key"].to_pylist(), table["label"].to_numpy().astype(np.int64), values


def _padded(batch: Tensor) -> Tensor:
    missing = EVAL_BATCH - len(batch)
    if not missing:
        return batch
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Module by module: frozen BatchNorm is in another mode than the rest.
        for module, training in modes:
            module.training = training


def _autocast(device: str, amp_dtype: str) -> contextlib.AbstractContextManager[object]:
    if amp_dtype == "none":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, amp_dtype))
