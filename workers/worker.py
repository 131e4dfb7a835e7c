"""A worker: one process that performs orders, and what it keeps warm between them.

    order -> perform -> events

The same object serves a Ray actor, a rank of a gang, the merge actor and the driver's own process.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workers.progress import Progress
from workers.storage import Store
from workers.types import AnyEvent, AnyOrder, ModelSpec, Setting, digest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.data import Images


class Worker:
    """Holds the store, the images and one model per shape. Torch is imported at first use."""

    def __init__(self, setting: Setting, slot: str = "local", rank: int = 0) -> None:
        self.setting = setting
        self.slot = slot
        self.rank = rank
        self.store = Store(setting.uri, cache_dir=setting.cache_dir)
        self.progress = Progress()
        self.last_step_at: float | None = None
        """Monotonic time of the last step of work here, for `gap_s`."""
        self.memory_is: str | None = None
        """Id of the checkpoint that the training model's memory is, byte for byte."""
        self.momentum: Any = None
        """What training keeps beside the weights that `memory_is` names.."""
        self._images: Images | None = None
        self._models: dict[str, nn.Module] = {}
        self._drop_path = 0.0
        self._pixels: dict[str, Tensor] = {}

    @property
    def images(self) -> "Images":
        """The split, decodable images of the experiment; written by preflight."""
        if self._images is None:
            from workers.data import Images

            self._images = Images.load(self.store, self.setting.data)
        return self._images

    def eval_pixels(self, split: str, preprocessing: dict[str, Any]) -> "Tensor":
        """`data.eval_pixels` of a split, kept for one preprocessing: decoded once per worker."""
        from workers.data import eval_pixels

        key = f"{split} {digest(preprocessing)}"
        if key not in self._pixels:
            kept = {k: v for k, v in self._pixels.items() if k.endswith(digest(preprocessing))}
            self._pixels = kept | {key: eval_pixels(self.images, split, preprocessing)}
        return self._pixels[key]

    def holds(self, spec: ModelSpec, drop_path: float | None = None) -> bool:
        """Whether `model` with these arguments has nothing to build."""
        same_drop_path = drop_path is None or drop_path == self._drop_path
        return digest(spec.model_dump()) in self._models and same_drop_path

    def model(self, spec: ModelSpec, drop_path: float | None = None) -> "nn.Module":
        """The warm module of this shape, on the device; its weights are whatever came last.

        `drop_path` matters to training only and is built in by timm; None takes any.
        """
        from workers.model import create_model

        key = digest(spec.model_dump())
        if not self.holds(spec, drop_path):
            self._models.clear()  # one shape at a time: memory stays that of one model
            self.memory_is, self.momentum, self._drop_path = None, None, drop_path or 0.0
            model = create_model(
                spec, len(self.images.classes), self.setting.data, drop_path=self._drop_path
            )
            self._models[key] = model.to(self.setting.device)
        return self._models[key]

    def forget(self) -> None:
        """Drop everything warm; after an exception its state is not to be trusted."""
        self._images, self._models, self._pixels = None, {}, {}
        self.memory_is, self.momentum = None, None

    def perform(self, order: AnyOrder, attempt: int) -> Iterator[AnyEvent]:
        """The events of one order, stamped with who, which and where."""
        from workers.performing import performer

        self.progress.begin(order.id)
        try:
            for event in performer(order)(order, attempt, self):
                yield event.model_copy(
                    update={
                        "order": order.id,
                        "run": order.run_id,
                        "attempt": attempt,
                        "slot": self.slot,
                    }
                )
        finally:
            self.progress.end()
            self.last_step_at = time.monotonic()
