"""Images of an experiment: found, decoded once, split, fingerprinted, and turned into tensors.

sources -> survey -> splits.parquet -> Images -> cache (evaluation), loader (training)
"""

from workers.data.augment import train_transform
from workers.data.cache import eval_pixels, normalise
from workers.data.index import Images, Sample
from workers.data.loader import epoch_order, step_batches, train_batches
from workers.data.survey import survey

__all__ = [
    "Images",
    "Sample",
    "epoch_order",
    "eval_pixels",
    "normalise",
    "step_batches",
    "survey",
    "train_batches",
    "train_transform",
]
