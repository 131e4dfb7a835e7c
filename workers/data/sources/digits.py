"""The 1,797 digits bundled with scikit-learn: 8x8 pixels, no files."""

from functools import lru_cache

import numpy as np
from PIL import Image

from workers.config.data import DataConfig
from workers.data.sources.image_ref import ImageRef
from workers.errors import UserError


def find_digits(spec: DataConfig) -> tuple[tuple[str, ...], list[ImageRef]]:
    """Class names in order, and every digit."""
    for setting in ("root", "train", "val", "test", "ood", "classes"):
        if getattr(spec, setting) != DataConfig.model_fields[setting].default:
            raise UserError(
                f"data.{setting} has no meaning with data.source=digits, which needs no folder; "
                "remove it, or set data.source=folder"
            )
    labels = _digits()[1]
    refs = [ImageRef("train", str(i), "", int(label)) for i, label in enumerate(labels)]
    return tuple(str(digit) for digit in range(10)), refs


def digit_image(index: int) -> Image.Image:
    """A bundled 8x8 digit as RGB. Its 17 grey levels are spread over 0..255."""
    grey = np.round(_digits()[0][index] * (255 / 16)).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target
