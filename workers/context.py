"""What a worker process keeps between orders: the store, the images, and one warm model.

The same object serves a Ray actor, a rank of a gang, the merge actor and the driver's own process.
"""

import time
from typing import TYPE_CHECKING

from workers.config.model import ModelConfig
from workers.heartbeat import Progress
from workers.storage.store import Store
from workers.types import WorkerConfig, model_key

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from workers.data import Images
    from workers.training.resume import WarmState


class WorkerContext:
    """Holds the store, the images and one model per shape. Torch is imported at first use."""

    def __init__(self, setting: WorkerConfig, slot: str = "local", rank: int = 0) -> None:
        self.setting = setting
        self.slot = slot
        self.rank = rank
        self.store = Store(setting.uri, cache_dir=setting.cache_dir)
        self.progress = Progress()
        self.last_step_at: float | None = None
        """Monotonic time of the last step of work here, for `gap_s`."""
        self.loaded_checkpoint_id: str | None = None
        """Id of the checkpoint that the training model's memory is, byte for byte."""
        self.warm_state: WarmState | None = None
        """Optimizer, position and moving average that belong to `loaded_checkpoint_id`."""
        self.hard_images_first: tuple[tuple[str, ...], np.ndarray] | None = None
        """(checkpoint ids, selection images sorted by how few of these models get them right)."""
        self._images: Images | None = None
        self._models: dict[str, nn.Module] = {}
        self._drop_path = 0.0

    @property
    def images(self) -> "Images":
        """The split, decodable images of the experiment; written by preflight."""
        if self._images is None:
            from workers.data import Images

            self._images = Images.load(self.store, self.setting.data)
        return self._images

    def holds(self, spec: ModelConfig, drop_path: float | None = None) -> bool:
        """Whether `model` with these arguments has nothing to build."""
        same_drop_path = drop_path is None or drop_path == self._drop_path
        return model_key(spec) in self._models and same_drop_path

    def model(self, spec: ModelConfig, drop_path: float | None = None) -> "nn.Module":
        """The warm module of this shape, on the device; its weights are whatever came last.

        `drop_path` matters to training only and is built in by timm; None takes any.
        """
        from workers.models.build import create_model

        key = model_key(spec)
        if not self.holds(spec, drop_path):
            self._models.clear()  # one shape at a time: memory stays that of one model
            self.loaded_checkpoint_id, self.warm_state = None, None
            self._drop_path = drop_path or 0.0
            model = create_model(
                spec, len(self.images.classes), self.setting.data, drop_path=self._drop_path
            )
            self._models[key] = model.to(self.setting.device)
        return self._models[key]

    def forget(self) -> None:
        """Drop everything warm; after an exception its state is not to be trusted."""
        self._images, self._models = None, {}
        self.loaded_checkpoint_id, self.warm_state, self.hard_images_first = None, None, None

    @property
    def is_warm(self) -> bool:
        """Whether a model is in memory."""
        return bool(self._models)

    def gap_s(self) -> float | None:
        """Seconds since the last step of work here; None before the first."""
        return None if self.last_step_at is None else time.monotonic() - self.last_step_at

    def set_num_threads(self) -> None:
        """The number of threads is part of a CPU result's bits."""
        import torch

        torch.set_num_threads(self.setting.threads)


def cuda_is_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def num_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
