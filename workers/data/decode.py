"""Decoding of image files, and the reduction of training images before augmentation."""

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
"""Errors of Pillow's decoders for bytes that are not a complete image."""


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """The first frame as RGB.

    With `at_least`, a JPEG is decoded, faster, at the smallest of half, quarter and eighth size
    that has so many pixels per side. Raises one of DECODE_ERRORS.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of palettes with transparency, and of large images
        with Image.open(io.BytesIO(content)) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            return image.convert("RGB")


DRAFT = 2
"""A JPEG is decoded smaller only down to this multiple of the wanted size, as in Pillow's
thumbnails. Bicubic filtering does the rest."""


def reduced_size(spec: DataConfig, preprocessing: dict[str, Any]) -> int:
    """Shorter side in pixels that training images are reduced to."""
    return spec.cache_size or round(min(preprocessing["input_size"][1:]) * 8 / 7)


def reduce(image: Image.Image, size: int) -> Image.Image:
    """The image with a shorter side of `size` pixels, by antialiased bicubic filtering.

    An image that is not larger is returned as it is.
    """
    width, height = image.size
    shorter = min(width, height)
    if shorter <= size:
        return image
    small = (round(width * size / shorter), round(height * size / shorter))
    return image.resize(small, Image.Resampling.BICUBIC)
