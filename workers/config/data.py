"""data: where images come from, how they are split, how they are kept."""

from typing import Literal

from pydantic import Field, model_validator

from workers.config import NamedPaths, Section


class DataConfig(Section):
    """Where images come from and how they are split."""

    source: Literal["folder", "webdataset", "parquet", "digits"] = "folder"
    """`folder`: class folders of images; `webdataset`: tar shards; `parquet`: files with an image
    and a label column; `digits`: the 8x8 digits bundled with scikit-learn."""
    root: str | None = None
    """Folder or URI that `train`, `val`, `test` and `ood` are relative to."""
    train: NamedPaths = {".": "."}
    """Class folders, shards or files to train on: a path, a list of paths, or {name: path}. Shards
    and Parquet files may be patterns, such as `train-{000..099}.tar`. `{}` is none, for class
    folders and runs that all are `train.weights`."""
    val: str | None = None
    """Selection split; without it, `val_fraction` of `train` is set aside."""
    test: str | None = None
    """Report split; without it, `test_fraction` of `test_from` is set aside."""
    test_from: Literal["train", "val"] = "train"
    """Whose images `test_fraction` is of; `val` shares the selection images with the report."""
    ood: NamedPaths = {}
    """Out-of-distribution report splits, named `ood:<name>`."""
    classes: str | tuple[str, ...] | None = None
    """Class names in the order of their labels, or a JSON list or text file of them relative to
    `root`. Found in the data when absent: folder names, sorted; or label names of the files."""
    image_column: str = "image"
    """Of Parquet files: encoded image bytes, or {bytes, path} as on Hugging Face hubs."""
    label_column: str = "label"
    """Of Parquet files: whole numbers or class names."""
    image_size: int | None = Field(default=None, ge=8)
    """Square input size in pixels; the model's own when absent."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Centre-crop fraction of evaluation; the model's own when absent."""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """Decoded images, kept once per node: in shared memory, on disk, or not at all; `auto` is disk
    where there is room. Never changes a result."""
    cache_size: int | None = Field(default=None, ge=8)
    """Shorter side in pixels that training images are reduced to once, before any augmentation;
    8/7 of the input size when absent, as in 256 for 224. Smaller images stay as they are."""
    workers: int = Field(default=0, ge=0)
    """Loader processes per rank; 0 augments in the training process."""
    folds: int | None = Field(default=None, ge=2)
    """Train every setting this many times, each without its own part of the training images."""
    val_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.15, gt=0, lt=1)

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
