"""Images of an experiment: sources, decoding, splits, fingerprints, cache and batches.

sources -> scan -> splits.parquet -> Images -> cache -> pixels, loader -> batches
"""

from workers.data.augment import require_policy, train_transform
from workers.data.images import Images, Sample
from workers.data.loader import epoch_order, step_batches, train_batches
from workers.data.mixup import Mixing
from workers.data.pixel_cache import TrainPixels, eval_pixels, normalise, train_pixels
from workers.data.scan import scan

__all__ = [
    "Images",
    "Mixing",
    "Sample",
    "TrainPixels",
    "epoch_order",
    "eval_pixels",
    "normalise",
    "require_policy",
    "step_batches",
    "scan",
    "train_batches",
    "train_pixels",
    "train_transform",
]
