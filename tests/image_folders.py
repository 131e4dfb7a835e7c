"""Small image files of different content, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_picture(path: Path, seed: int, size: tuple[int, int] = (20, 14)) -> None:
    """Write noise that depends on the seed; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_classes(
    folder: Path, counts: dict[str, int], seed: int = 0, size: tuple[int, int] = (20, 14)
) -> None:
    """Write so many PNG images per class folder. All images of a seed differ."""
    for label, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_picture(folder / name / f"{i:03d}.png", seed * 10**6 + label * 10**3 + i, size)
