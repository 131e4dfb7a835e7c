"""The sections of the configuration that a worker reads: data, model, base, train.

They live here, beside the code that obeys them; `orchestrator.config` composes them into an
Experiment. A YAML path is a field path is an override path. timm's flag names are kept where timm
has the flag, torchvision's otherwise.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen, strict part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _named_paths(value: Any) -> Any:
    """A path, a list of paths, or {name: path}; all become {name: path}."""
    if isinstance(value, str):
        return {value: value}
    if isinstance(value, list):
        return {str(path): str(path) for path in value}
    return value


NamedPaths = Annotated[dict[str, str], BeforeValidator(_named_paths)]


class DataSpec(Section):
    """Where images come from and how they are split."""

    source: Literal["folder", "digits"] = "folder"
    """`folder`: class folders of images; `digits`: the 8x8 digits bundled with scikit-learn."""
    root: str | None = None
    """Folder that `train`, `val`, `test` and `ood` are relative to."""
    train: NamedPaths = {".": "."}
    """Class folders to train on: a path, a list of paths, or {name: path}."""
    val: str | None = None
    """Selection split; without it, `val_fraction` of `train` is set aside."""
    test: str | None = None
    """Report split; without it, `test_fraction` of `train` is set aside."""
    ood: NamedPaths = {}
    """Out-of-distribution report splits, named `ood:<name>`."""
    image_size: int | None = Field(default=None, ge=8)
    """Square input size in pixels; the model's own when absent."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Centre-crop fraction of evaluation; the model's own when absent."""
    workers: int = Field(default=0, ge=0)
    """Loader processes per rank; 0 decodes in the training process."""
    val_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _fractions_leave_training_images(self) -> "DataSpec":
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction {self.val_fraction} + test_fraction {self.test_fraction} leave no "
                "training images; make their sum smaller than 1"
            )
        return self


class ModelSpec(Section):
    """A timm architecture and where its weights come from."""

    name: str
    """timm model name."""
    pretrained: bool = False
    """Start from timm's published weights (downloaded by timm)."""
    checkpoint: str | None = None
    """Local `.safetensors` or `.pth` weights of the same architecture; its head is replaced."""
    kwargs: dict[str, Any] = {}
    """Passed to `timm.create_model`, e.g. {pad_type: same}."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if self.pretrained and self.checkpoint:
            raise ValueError("give either pretrained: true or checkpoint, not both")
        return self


class BaseSpec(Section):
    """How the common starting point of all runs of a cohort is made."""

    init: Literal["zero", "timm"] = "zero"
    """Initial classifier: all zeros, or timm's initialisation."""
    probe_epochs: int = Field(default=0, ge=0)
    """Epochs of training the classifier alone on the frozen backbone (LP-FT)."""
    trunk_epochs: int = Field(default=0, ge=0)
    """Epochs of training the whole network once, before the runs part ways."""


class TrainSpec(Section):
    """One fine-tuning run."""

    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=32, ge=2)
    """Images per rank and micro-batch."""
    grad_accum_steps: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    opt: str = "adamw"
    """Any timm optimizer."""
    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    head_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the classifier; `lr` when absent."""
    weight_decay: float = Field(default=0.05, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    sched: Literal["cosine", "poly", "tanh", "none"] = "cosine"
    """timm learning-rate schedule, applied per optimizer step."""
    warmup_epochs: int = Field(default=0, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing."""
    aa: str | None = None
    """timm auto-augment policy, e.g. `rand-m7-mstd0.5`."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    color_jitter: float | None = Field(default=None, ge=0)
    crop: tuple[float, float] = (0.35, 1.0)
    """Area range of the random resized crop."""
    reprob: float = Field(default=0.0, ge=0, le=1)
    """Random-erasing probability."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic-depth rate of the network."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest gradient norm."""
    amp_dtype: Literal["none", "bfloat16", "float16"] = "none"
    bn_freeze: bool = False
    """Keep BatchNorm statistics at their starting values during training."""
    checkpoint_every: int | str = 1
    """Epochs between checkpoints, or "N steps"; the end of training is always one."""

    @model_validator(mode="after")
    def _checkpoint_every_is_readable(self) -> "TrainSpec":
        self.checkpoint_steps(1)
        return self

    @model_validator(mode="after")
    def _schedule_has_room(self) -> "TrainSpec":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be smaller than epochs {self.epochs}"
            )
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop {list(self.crop)} must be [smallest, largest] within (0, 1]")
        return self

    def steps_per_epoch(self, num_images: int, ranks: int) -> int:
        """Optimizer steps per epoch: the short last one counts, unless it would hold fewer than
        two images per rank, which no BatchNorm can normalise."""
        per_step = self.batch_size * self.grad_accum_steps * ranks
        full, rest = divmod(num_images, per_step)
        return full + (1 if rest >= 2 * ranks else 0)

    def checkpoint_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps between two checkpoints."""
        every = period_steps(self.checkpoint_every, steps_per_epoch)
        if every is None:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every!r} is neither epochs nor 'N steps'; "
                'write 1, or "200 steps"'
            )
        return every


def period_steps(every: int | str, steps_per_epoch: int) -> int | None:
    """Steps in `every`, a number of epochs or "N steps"; None when it is neither."""
    if isinstance(every, int):
        return every * steps_per_epoch if every >= 1 else None
    number, _, unit = every.partition(" ")
    if unit == "steps" and number.isdigit() and int(number) >= 1:
        return int(number)
    return None


def num_epochs_begun(step: int, steps_per_epoch: int) -> int:
    """Epochs touched by the first `step` optimizer steps."""
    return math.ceil(step / steps_per_epoch)
