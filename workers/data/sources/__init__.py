"""Sources of images: class folders, tar shards, Parquet files, or the bundled digits.

config -> files of every split -> (label, position of the bytes) of every image -> ImageRef
"""

from collections.abc import Callable

from workers.config.data import DataConfig
from workers.data.remote_files import Files
from workers.data.sources.digits import digit_image, find_digits
from workers.data.sources.folder import EXTENSIONS, class_folders, find_in_folders, image_files
from workers.data.sources.image_ref import ImageRef, Reader
from workers.data.sources.parquet import RowReader, find_in_parquet
from workers.data.sources.webdataset import find_in_shards

__all__ = [
    "EXTENSIONS",
    "ImageRef",
    "Reader",
    "class_folders",
    "digit_image",
    "find_images",
    "image_files",
    "reader",
]


def find_images(
    spec: DataConfig, touch: Callable[[], object] = lambda: None
) -> tuple[tuple[str, ...], list[ImageRef]]:
    """Class names in order, and all images of all given splits. `touch` is called meanwhile.

    Raises:
        UserError: data is missing or cannot be used.
        OSError: a remote place does not answer.
    """
    if spec.source == "digits":
        return find_digits(spec)
    if spec.source == "webdataset":
        return find_in_shards(spec, Files(), touch)
    if spec.source == "parquet":
        return find_in_parquet(spec, Files(), touch)
    return find_in_folders(spec, Files(), touch)


def reader(spec: DataConfig) -> Reader:
    """Reader of the images that `find_images` found. It opens no file yet, and can be pickled."""
    return RowReader(Files(), spec.image_column) if spec.source == "parquet" else Files()
