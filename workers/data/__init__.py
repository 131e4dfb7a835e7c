"""Images of an experiment: found, decoded once, split, fingerprinted, and turned into tensors.

sources -> survey -> splits.parquet -> Images -> cache -> pixels, loader -> batches
"""

from workers.data.augment import require_policy, train_transform
from workers.data.cache import TrainPixels, eval_pixels, normalise, train_pixels
from workers.data.index import Images, Sample
from workers.data.loader import epoch_order, step_batches, train_batches
from workers.data.mixing import Mixing
from workers.data.survey import survey
from workers.data.weights import class_weights

__all__ = [
    "Images",
    "Mixing",
    "Sample",
    "TrainPixels",
    "class_weights",
    "epoch_order",
    "eval_pixels",
    "normalise",
    "require_policy",
    "step_batches",
    "survey",
    "train_batches",
    "train_pixels",
    "train_transform",
]
