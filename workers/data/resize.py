"""Training images reduced once, before any augmentation: the same pixels in every cache mode."""

from typing import Any

from PIL import Image

from workers.data.decode import UNDECODABLE, decode
from workers.data.index import Images
from workers.spec import DataSpec

DRAFT = 2
"""A JPEG may be decoded smaller where this many times the wanted size is left, as in Pillow's own
thumbnails: bicubic filtering does the rest."""


def reduced_size(spec: DataSpec, preprocessing: dict[str, Any]) -> int:
    """Shorter side in pixels that training images are reduced to."""
    return spec.cache_size or round(min(preprocessing["input_size"][1:]) * 8 / 7)


def reduced_image(images: Images, i: int, size: int) -> Image.Image:
    """RGB image `i` of the training split. Raises OSError, naming the image, if it is gone."""
    sample = images.samples("train")[i]
    try:
        if not sample.path:
            return reduce(images.image("train", i), size)
        return reduce(decode(images.content("train", i), at_least=DRAFT * size), size)
    except UNDECODABLE as error:
        raise OSError(f"training image {sample.key} can no longer be read: {error}") from error


def reduce(image: Image.Image, size: int) -> Image.Image:
    """Shorter side of `size` pixels at the same aspect ratio, bicubic with antialias; an image
    that is no larger stays as it is."""
    width, height = image.size
    shorter = min(width, height)
    if shorter <= size:
        return image
    small = (round(width * size / shorter), round(height * size / shorter))
    return image.resize(small, Image.Resampling.BICUBIC)
