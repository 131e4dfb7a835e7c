"""Bytes of an image file to an RGB image."""

import io
import struct
import warnings

from PIL import Image

UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for bytes that are no whole image."""


def decode(content: bytes) -> Image.Image:
    """The first frame, as RGB, at full size. Raises one of UNDECODABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # palettes with transparency, large pictures
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
