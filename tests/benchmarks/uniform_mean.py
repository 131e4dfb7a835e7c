"""The uniform mean of many checkpoints, against reading their bytes once.

    python -m tests.benchmarks.uniform_mean [--count 16] [--mib 330] [--threads 2] [--folder DIR]

Both read from the page cache with the same threads. Memory is the peak of anonymous memory, which
does not include mapped checkpoints.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.memory import PeakAnonymous
from workers.merging.blend import blend
from workers.storage.checkpoint_writer import write_checkpoint
from workers.storage.checkpoints import open_weights
from workers.storage.store import Store
from workers.types import Checkpoint, Mix

ROUNDS = 5


def measure(
    count: int = 16, mib: int = 330, threads: int = 2, folder: str | None = None
) -> dict[str, float]:
    """Median seconds of reading and of blending, their ratio; peak anonymous memory in models."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        store = Store(root)
        checkpoints = [
            write_checkpoint(store, f"run{i}/00000001", 0, 1, _weights(mib, i))
            for i in range(count)
        ]
        paths = [Path(root, f"runs/run{i}/checkpoints/00000001-0") for i in range(count)]
        files = [path / "model.safetensors" for path in paths]
        _blend(store, checkpoints)  # hashes the files, and fills the page cache
        reads, blends, peaks = [], [], []
        for _ in range(ROUNDS):
            reads.append(_seconds(lambda: _read(files, threads)))
            with PeakAnonymous() as peak:
                blends.append(_seconds(lambda: _blend(store, checkpoints)))
            peaks.append(peak.grown)
    read_s, blend_s = statistics.median(reads), statistics.median(blends)
    return {
        "count": count,
        "mib": mib,
        "threads": threads,
        "read_s": read_s,
        "blend_s": blend_s,
        "ratio": blend_s / read_s,
        "models_of_memory": max(peaks) / (mib * 2**20),
    }


def _weights(mib: int, seed: int) -> dict[str, Tensor]:
    """Weights of the shape of a ViT: large matrices, each with four small tensors."""
    generator = torch.Generator().manual_seed(seed)
    side, num_large = 768 * 3072, max(1, mib * 2**20 // 4 // (768 * 3072))
    weights = {f"block.{i}.w": torch.randn(side, generator=generator) for i in range(num_large)}
    small = {f"small.{i}": torch.randn(768, generator=generator) for i in range(4 * num_large)}
    return weights | small


def _read(files: list[Path], threads: int) -> None:
    def read(file: Path) -> None:
        buffer = bytearray(1 << 20)
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, files))


def _blend(store: Store, checkpoints: list[Checkpoint]) -> dict[str, Tensor]:
    sources = {c.name: open_weights(store, c) for c in checkpoints}
    return dict(blend(Mix.mean(list(sources)), sources))


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--mib", type=int, default=330)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder")
    for name, value in measure(**vars(parser.parse_args())).items():
        print(f"{name:>18}  {value:.4g}")


if __name__ == "__main__":
    main()
