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
