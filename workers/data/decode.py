"""Decoding of image files, and the reduction of training images before augmentation."""

import io
import warnings
from typing import Any

from PIL import Image

from workers.config.data import DataConfig

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow's names of the formats that are decoded. Others, such as PostScript, start programs."""

MAX_PIXELS = 180_000_000
"""Pixels of the largest image that is decoded; as RGB they take half a gigabyte."""

DAMAGED = "it is damaged, or no image"


class UndecodableImage(OSError):
    """Bytes that are not a complete image of a known format. The message is the reason."""


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """The first frame as RGB.

    With `at_least`, a JPEG is decoded, faster, at the smallest of half, quarter and eighth size
    that has so many pixels per side.

    Raises:
        UndecodableImage: the bytes are not an image of one of FORMATS, cut short, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes with transparency, and of large images
            return _decode(content, at_least)
    except UndecodableImage:
        raise
    except MemoryError:  # the fault of the machine, which decides nothing about the image
        raise
    except Exception as error:  # noqa: BLE001  Pillow's parsers raise whatever they stumble over
        raise UndecodableImage(_foreign_format(content) or DAMAGED) from error


def decoding_fault(content: bytes) -> str | None:
    """Why these bytes do not decode. None: they do."""
    try:
        decode(content)
    except UndecodableImage as error:
        return str(error)
    return None


def _decode(content: bytes, at_least: int | None) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UndecodableImage(f"{image.width} x {image.height} pixels are too many")
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        return image.convert("RGB")


def _foreign_format(content: bytes) -> str | None:
    """Name of a format that is not decoded, by the first bytes. None: it is unknown, or decoded."""
    Image.init()
    for name in sorted(Image.OPEN.keys() - set(FORMATS)):
        accept = Image.OPEN[name][1]
        if accept is not None and accept(content[:16].ljust(16, b"\0")) is True:
            return f"its format is {name}"
    return None


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
