"""Bytes of an image file to an RGB image, and training images reduced once before augmentation."""

import io
import struct
import warnings
from typing import Any

from PIL import Image

from workers.config.data import DataConfig

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for bytes that are no whole image."""


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """The first frame, as RGB, at full size; or, of a JPEG, at the smallest of its half, quarter
    and eighth that still has `at_least` pixels a side, which is quicker. Raises one of
    UNDECODABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # palettes with transparency, large pictures
        with Image.open(io.BytesIO(content)) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            return image.convert("RGB")


DRAFT = 2
"""A JPEG may be decoded smaller where this many times the wanted size is left, as in Pillow's own
thumbnails: bicubic filtering does the rest."""


def reduced_size(spec: DataConfig, preprocessing: dict[str, Any]) -> int:
    """Shorter side in pixels that training images are reduced to."""
    return spec.cache_size or round(min(preprocessing["input_size"][1:]) * 8 / 7)


def reduce(image: Image.Image, size: int) -> Image.Image:
    """Shorter side of `size` pixels at the same aspect ratio, bicubic with antialias; an image
    that is no larger stays as it is."""
    width, height = image.size
    shorter = min(width, height)
    if shorter <= size:
        return image
    small = (round(width * size / shorter), round(height * size / shorter))
    return image.resize(small, Image.Resampling.BICUBIC)
