"""Stall of training per checkpoint, against writing the same checkpoint synchronously.

    python -m tests.benchmarks.checkpoint_stall [--mib 264] [--device cuda] [--folder DIR]

The slowdown is the cost of the writer thread for the steps between checkpoints.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from workers.storage.checkpoint_writer import CheckpointWriter, write_checkpoint
from workers.storage.checkpoints import TrainState
from workers.storage.store import Store

NUM_CHECKPOINTS = 5
STEPS_BETWEEN = 1.5
"""Training time between checkpoints, as a multiple of one synchronous write."""


def measure(mib: int = 264, device: str = "cpu", folder: str | None = None) -> dict[str, float]:
    """Median seconds of one synchronous write and one stall, their ratio, and the slowdown.

    The state has weights and two moments of equal size, as with AdamW.
    """
    torch.set_num_threads(1)
    weights, state = _training_state(mib, device)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        store = Store(root)
        written = [
            _seconds(
                lambda i=i: write_checkpoint(store, f"a/{i}", 1, i, weights, train_state=state)
            )
            for i in range(NUM_CHECKPOINTS)
        ]
        between_s = STEPS_BETWEEN * statistics.median(written)
        undisturbed = _steps(between_s, device)
        stalls, rates = [], []
        with CheckpointWriter(store) as writer:
            for i in range(NUM_CHECKPOINTS + 1):
                before = writer.stall_s
                writer.submit(f"b/{i}", 1, i, weights, train_state=state)
                stalls.append(writer.stall_s - before)
                rates.append(_steps(between_s, device))
            writer.flush()
    sync_s, stall_s = statistics.median(written), statistics.median(stalls[1:])
    return {
        "mib": mib,
        "sync_s": sync_s,
        "first_stall_s": stalls[0],
        "stall_s": stall_s,
        "ratio": stall_s / sync_s,
        "slowdown_between": undisturbed / statistics.median(rates[1:]),
    }


def _training_state(mib: int, device: str) -> tuple[dict[str, Tensor], TrainState]:
    num_tensors = 150
    length = mib * 2**20 // 4 // 3 // num_tensors
    parts = [
        {f"block.{i}": torch.randn(length, device=device) for i in range(num_tensors)}
        for _ in range(3)
    ]
    moments = {f"{moment}.{k}": v for moment, part in enumerate(parts[1:]) for k, v in part.items()}
    return parts[0], TrainState(moments, {"epoch": 1})


def _seconds(action: object) -> float:
    assert callable(action)
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _steps(seconds: float, device: str) -> float:
    """Steps per second of a loop similar to training, measured for that long."""
    x = torch.randn(256, 256, device=device)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        x = torch.tanh(x @ x.T / 256)
        steps += 1
        if x.is_cuda:
            torch.cuda.synchronize()
    return steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=264)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    for name, value in measure(arguments.mib, arguments.device, arguments.folder).items():
        print(f"{name:18s} {value:.4g}")


if __name__ == "__main__":
    main()
