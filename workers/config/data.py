"""data: the images, their splits and their cache."""

from typing import Literal

from pydantic import Field, model_validator

from workers.config import NamedPaths, Section

MAX_SIDE = 8192
"""Longest side of an input in pixels."""


class DataConfig(Section):
    """The images, their splits and their cache."""

    source: Literal["folder", "webdataset", "parquet", "digits"] = "folder"
    """`folder`: local class folders. `webdataset`: tar shards. `parquet`: files with an image and a
    label column. `digits`: the 8x8 digits bundled with scikit-learn."""
    root: str | None = None
    """Folder or URI that `train`, `val`, `test` and `ood` are relative to. None: not set; only
    `digits` needs no root."""
    train: NamedPaths = {".": "."}
    """Class folders, shards or files of the training images: a path, a list of paths, or
    {name: path}. Shards and Parquet files may be patterns, such as `train-{000..099}.tar`. `{}`: no
    training images, if `source` is `folder` and every run sets `train.weights`."""
    val: str | None = None
    """Path of the selection split. None: `val_fraction` of `train`."""
    test: str | None = None
    """Path of the report split. None: `test_fraction` of `test_from`."""
    test_from: Literal["train", "val"] = "train"
    """Split that `test_fraction` is taken from."""
    ood: NamedPaths = {}
    """Paths of out-of-distribution report splits, which are named `ood:<name>`."""
    classes: str | tuple[str, ...] | None = None
    """Class names in the order of their labels, or a JSON list or text file of them, relative to
    `root`. None: the names in the data, i.e. sorted folder names or the labels of the files."""
    image_column: str = "image"
    """Column of Parquet files with encoded image bytes, or {bytes, path} as on Hugging Face
    hubs."""
    label_column: str = "label"
    """Column of Parquet files with whole numbers or class names."""
    image_size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Side of the square input in pixels. None: the model's own."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Fraction of the image that evaluation's centre crop keeps. None: the model's own."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Place of decoded images on a node: shared memory, disk, or none. `auto`: disk if there is
    room. No result depends on it."""
    cache_size: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    """Shorter side in pixels that training images are reduced to once, before augmentation. None:
    8/7 of the input size, as in 256 for 224. Smaller images keep their size."""
    workers: int = Field(default=0, ge=0)
    """Loader processes per rank. 0: the training process augments."""
    folds: int | None = Field(default=None, ge=2)
    """Number of folds. Every setting is trained once per fold, without the fold's part of the
    training images. None: no folds."""
    val_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of `train` that becomes the selection split, if `val` is not set."""
    test_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of `test_from` that becomes the report split, if `test` is not set."""

    @model_validator(mode="after")
    def _selection_images_exist(self) -> "DataConfig":
        if self.val is not None:
            return self
        if not self.train or self.test_from == "val":
            what = "test_from is val" if self.train else "train names nothing"
            raise ValueError(f"{what}, but val is absent; name the selection images in val")
        return self

    @model_validator(mode="after")
    def _without_training_images(self) -> "DataConfig":
        if not self.train and (self.source != "folder" or self.folds is not None):
            raise ValueError(
                f"train names nothing, but source is {self.source} and folds {self.folds}; only "
                "class folders without folds go without training images"
            )
        return self

    @model_validator(mode="after")
    def _fractions_leave_training_images(self) -> "DataConfig":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} + test_fraction {self.test_fraction} leave no "
                "training images; make their sum smaller than 1"
            )
        return self
