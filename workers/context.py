"""The context of a worker process between orders: the store, the images and one warm model.

A Ray actor, a rank of a gang, the merge actor and the driver's own process all use it.
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
    from workers.merging.recipe_driver import LiveRecipe
    from workers.training.resume import WarmState


class WorkerContext:
    """The store, the images and the model in memory. Torch is imported at first use."""

    def __init__(self, config: WorkerConfig, slot: str = "local", rank: int = 0) -> None:
        self.config = config
        self.slot = slot
        self.rank = rank
        self.progress = Progress()
        self.store = Store(
            config.uri, cache_dir=config.cache_dir, on_bytes=lambda: self.progress.beat()
        )
        self.last_step_at: float | None = None
        """Monotonic time of the last step in this process. None: no step yet."""
        self.loaded_checkpoint_id: str | None = None
        """Id of the checkpoint whose bytes the training model holds. None: unknown."""
        self.warm_state: WarmState | None = None
        """Optimizer, position and moving average that belong to `loaded_checkpoint_id`."""
        self.hard_images_first: tuple[tuple[str, ...], np.ndarray] | None = None
        """(checkpoint ids, selection images sorted by how few of these models get them right)."""
        self.live_recipes: dict[str, LiveRecipe] = {}
        """Recipes between two questions, by merge; see `workers.merging.recipe_driver`."""
        self._images: Images | None = None
        self._models: dict[str, nn.Module] = {}
        self._drop_path = 0.0

    @property
    def images(self) -> "Images":
        """The images of the experiment, by split, as preflight wrote them."""
        if self._images is None:
            from workers.data import Images

            self._images = Images.load(self.store, self.config.data)
        return self._images

    def holds(self, spec: ModelConfig, drop_path: float | None = None) -> bool:
        """Whether `model` with these arguments need not build a model."""
        same_drop_path = drop_path is None or drop_path == self._drop_path
        return model_key(spec) in self._models and same_drop_path

    def model(self, spec: ModelConfig, drop_path: float | None = None) -> "nn.Module":
        """The module of this shape, on the device, with any weights.

        timm builds `drop_path` in, and only training needs it. None: any value.
        """
        from workers.models.build import create_model

        key = model_key(spec)
        if not self.holds(spec, drop_path):
            self._models.clear()  # only one model is in memory
            self.loaded_checkpoint_id, self.warm_state = None, None
            self._drop_path = drop_path or 0.0
            model = create_model(
                spec, len(self.images.classes), self.config.data, drop_path=self._drop_path
            )
            self._models[key] = model.to(self.config.device)
        return self._models[key]

    def forget(self) -> None:
        """Drop images, models and recipes, whose state is unknown after an exception."""
        self._images, self._models, self.live_recipes = None, {}, {}
        self.loaded_checkpoint_id, self.warm_state, self.hard_images_first = None, None, None

    @property
    def is_warm(self) -> bool:
        """Whether a model is in memory."""
        return bool(self._models)

    def gap_s(self) -> float | None:
        """Seconds since the last step in this process. None: no step yet."""
        return None if self.last_step_at is None else time.monotonic() - self.last_step_at

    def set_num_threads(self) -> None:
        """Set the number of torch threads, on which the bits of CPU results depend."""
        import torch

        torch.set_num_threads(self.config.threads)


def cuda_is_available() -> bool:
    """Whether torch finds a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def num_gpus() -> int:
    """Number of GPUs that torch finds."""
    import torch

    return int(torch.cuda.device_count())
