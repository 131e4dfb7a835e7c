"""Forward passes in evaluation: uint8 pixels to logits.

uint8 pixels -> batches of EVAL_BATCH -> normalise on the device -> float32 logits
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.data import normalise
from workers.models.training_flags import keep_training_flags

EVAL_BATCH = 64
"""Images per forward pass, the last one padded: the kernels a CPU picks, and so the last bits of a
logit, depend on the batch size."""


def logits(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: dict[str, Any],
    device: str,
    on_batch: Callable[[int], None] | None = None,
    amp_dtype: str = "none",
) -> np.ndarray:
    """float32 (N, C) logits in eval mode; training flags are restored.

    `pixels` uint8 (N, 3, H, W). `on_batch` gets the number of images done so far.
    """
    rows = []
    with keep_training_flags(model), torch.inference_mode(), _autocast(device, amp_dtype):
        model.eval()
        for start in range(0, len(pixels), EVAL_BATCH):
            batch = pixels[start : start + EVAL_BATCH]
            inputs = normalise(_padded(batch).to(device), preprocessing)
            rows.append(model(inputs)[: len(batch)].float().cpu())
            if on_batch:
                on_batch(start + len(batch))
    result: np.ndarray = torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)
    return result


def _padded(batch: Tensor) -> Tensor:
    missing = EVAL_BATCH - len(batch)
    if not missing:
        return batch
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])


def _autocast(device: str, amp_dtype: str) -> contextlib.AbstractContextManager[object]:
    if amp_dtype == "none":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, amp_dtype))
