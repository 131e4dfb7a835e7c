"""train: augmentation, optimisation, end and checkpoints of one fine-tuning run."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from workers.config import Section

Crop = tuple[float, float] | Literal["center"]
Share = Annotated[float, Field(ge=0, le=1)]


def _modules(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class AffineConfig(Section):
    """torchvision's RandomAffine."""

    degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation in degrees, either way."""
    translate: tuple[Share, Share] | None = None
    """Largest shift, as fractions of width and height. None: no shift."""
    scale: tuple[float, float] | None = None
    """[smallest, largest] zoom factor. None: no zoom."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest shear in degrees, either way."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "AffineConfig":
        if self.scale and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be [smallest, largest], above 0")
        return self


class PerspectiveConfig(Section):
    """torchvision's RandomPerspective."""

    distortion_scale: float = Field(default=0.5, ge=0, le=1)
    """Strength, 0 to 1."""
    p: float = Field(default=0.5, ge=0, le=1)
    """Probability per image."""


class UnfreezeConfig(Section):
    """One phase of gradual unfreezing. The learning-rate schedule restarts with each phase."""

    epoch: int = Field(ge=0)
    """First epoch of the phase. The first phase begins at 0."""
    modules: Annotated[tuple[str, ...], BeforeValidator(_modules)] = Field(min_length=1)
    """Modules that learn from this phase on, such as `layer4`. `head`: the classifier. `all`: the
    whole network."""


class TrainConfig(Section):
    """One fine-tuning run."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the training images."""
    batch_size: int = 32
    """Images per rank and micro-batch, at least 2."""
    grad_accum_steps: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    opt: str = "adamw"
    """Name of a timm optimizer."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0.0, ge=0)
    """Lowest learning rate of `cosine`, `poly`, `tanh` and `plateau`."""
    head_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the classifier. None: `lr`."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay. Vectors, biases and parameters that the model exempts have none."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of optimizers that have one, such as `sgd`."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor of the learning rate from each group of layers to the one below it. None: one rate for
    all."""
    sched: Literal["cosine", "poly", "tanh", "step", "multistep", "plateau", "none"] = "cosine"
    """timm's learning-rate schedule, applied per optimizer step. `none`: constant after the
    warm-up."""
    lr_cycle_limit: int = Field(default=1, ge=1)
    """Number of cycles of `cosine`, `poly` or `tanh` in all epochs: warm restarts (SGDR)."""
    lr_cycle_mul: float = Field(default=1.0, ge=1)
    """Length of a cycle over the length of the previous one."""
    lr_cycle_decay: float = Field(default=1.0, gt=0, le=1)
    """Peak learning rate of a cycle over that of the previous one."""
    decay_epochs: float = Field(default=10, gt=0)
    """Epochs between two decays of `sched: step`."""
    decay_milestones: tuple[int, ...] = ()
    """Epochs of the decays of `sched: multistep`, which needs them."""
    decay_rate: float = Field(default=0.1, gt=0, le=1)
    """Factor of the learning rate at a decay of `step`, `multistep` or `plateau`."""
    patience_epochs: int = Field(default=2, ge=0)
    """Epochs without a better score before `sched: plateau` decays. The score is that of the
    held-out fold, or of the selection split without folds."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs of linear warm-up, fewer than `epochs`."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing, 0 to 1."""
    aa: str | None = None
    """timm's auto-augment policy, e.g. `rand-m7-mstd0.5`. None: no policy."""
    crop: Crop = (0.35, 1.0)
    """[smallest, largest] share of the area that the random resized crop keeps. `center`: the crop
    of evaluation."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    vflip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a vertical flip."""
    color_jitter: float | None = Field(default=None, ge=0)
    """Strength of changes of brightness, contrast and saturation. None: no changes."""
    grayscale: float = Field(default=0.0, ge=0, le=1)
    """Probability of removing all colour."""
    affine: AffineConfig | None = None
    """Random affine warp. None: no warp."""
    perspective: PerspectiveConfig | None = None
    """Random perspective warp. None: no warp."""
    reprob: float = Field(default=0.0, ge=0, le=1)
    """Probability of random erasing (Zhong et al., 2020)."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of MixUp (Zhang et al., 2018). 0: no MixUp."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of CutMix (Yun et al., 2019). 0: no CutMix."""
    mixup_prob: float = Field(default=1.0, ge=0, le=1)
    """Probability that a micro-batch is mixed."""
    mixup_switch_prob: float = Field(default=0.5, ge=0, le=1)
    """Probability of CutMix rather than MixUp, if both are on."""
    mixup_off_epoch: int = Field(default=0, ge=0)
    """First epoch without mixing. 0: all epochs mix."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weights of the classes in the loss. `balanced`: inverse to their frequency. {class: weight}:
    1 for classes that are not named. None: all 1."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic-depth rate of the network."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest gradient norm. None: no clipping."""
    amp_dtype: Literal["none", "bfloat16", "float16"] = "none"
    """Type of mixed-precision training. `none`: float32."""
    tf32: bool = True
    """Let a GPU multiply float32 matrices in TF32."""
    channels_last: bool = False
    """Use the channels-last memory layout, which makes convolutions faster on a GPU."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, which needs less memory and more time."""
    compile: bool = False
    """Compile the network with torch.compile for training."""
    bn_freeze: bool = False
    """Keep BatchNorm statistics at the values at the start of training."""
    unfreeze: tuple[UnfreezeConfig, ...] = ()
    """Phases of gradual unfreezing. A module is frozen until a phase names it. Empty: the whole
    network learns from the start."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better score after which the run ends early. The score is that of
    `patience_epochs`. With `unfreeze`, only epochs of the last phase count. None: never."""
    model_ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is an ingredient of its own.
    None: no average."""
    model_ema_warmup: bool = False
    """Let the decay of the average grow from 0, for runs of few steps."""
    checkpoint_every: int | str = 1
    """Epochs between checkpoints, or "N steps". The end of training is always a checkpoint."""
    weights: str | None = None
    """`.safetensors` or torch file with trained weights, head included. The run is this file, and
    nothing is trained. None: the run is trained."""
    weights_ema: bool = False
    """Use the averaged weights that timm's train script keeps in the file of `weights`."""

    @field_validator("batch_size")
    @classmethod
    def _batch_can_be_normalised_and_mixed(cls, value: int) -> int:
        if value < 2:
            raise ValueError(
                f"got {value}; write 2 or more, because BatchNorm, MixUp and CutMix need other "
                "images (grad_accum_steps adds small micro-batches up)"
            )
        return value

    @model_validator(mode="after")
    def _checkpoint_every_is_readable(self) -> "TrainConfig":
        self.checkpoint_steps(1)
        return self

    @model_validator(mode="after")
    def _schedule_has_room(self) -> "TrainConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be smaller than epochs {self.epochs}"
            )
        crop = self.crop
        if crop != "center" and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(
                f"crop {list(crop)} must be center, or [smallest, largest] within (0, 1]"
            )
        return self

    @model_validator(mode="after")
    def _sections_are_in_order(self) -> "TrainConfig":
        epochs = [section.epoch for section in self.unfreeze]
        if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
            raise ValueError(
                f"unfreeze begins its sections at epochs {epochs}; begin the first at epoch 0 and "
                "each other one later than the one before"
            )
        if epochs and epochs[-1] >= self.epochs:
            raise ValueError(
                f"unfreeze begins a section at epoch {epochs[-1]} of {self.epochs}; begin it "
                "earlier, or train longer"
            )
        return self

    @model_validator(mode="after")
    def _schedule_options_fit(self) -> "TrainConfig":
        if self.lr_cycle_limit > 1 and self.sched not in ("cosine", "poly", "tanh"):
            raise ValueError(
                f"lr_cycle_limit {self.lr_cycle_limit} has no meaning with sched: {self.sched}; "
                "restarts need cosine, poly or tanh"
            )
        if (self.sched == "multistep") != bool(self.decay_milestones):
            raise ValueError(
                f"decay_milestones {list(self.decay_milestones)} and sched: {self.sched} do not "
                "go together; sched: multistep needs milestones, and no other takes them"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether MixUp or CutMix is on."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    def steps_per_epoch(self, num_images: int, ranks: int) -> int:
        """Optimizer steps per epoch.

        The short last step counts, unless it has fewer than the two images per rank that BatchNorm
        needs. Imported weights have one step.
        """
        if self.weights is not None:
            return 1
        per_step = self.batch_size * self.grad_accum_steps * ranks
        full, rest = divmod(num_images, per_step)
        return full + (1 if rest >= 2 * ranks else 0)

    def checkpoint_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps between checkpoints."""
        every = period_steps(self.checkpoint_every, steps_per_epoch)
        if every is None:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every!r} is neither epochs nor 'N steps'; "
                'write 1, or "200 steps"'
            )
        return every


def period_steps(every: int | str, steps_per_epoch: int) -> int | None:
    """Optimizer steps in `every`, a number of epochs or "N steps". None: it is neither."""
    if isinstance(every, int):
        return every * steps_per_epoch if every >= 1 else None
    number, _, unit = every.partition(" ")
    if unit == "steps" and number.isdigit() and int(number) >= 1:
        return int(number)
    return None


def num_epochs_begun(step: int, steps_per_epoch: int) -> int:
    """Number of epochs that the first `step` optimizer steps belong to."""
    return math.ceil(step / steps_per_epoch)
