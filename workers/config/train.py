"""train: one fine-tuning run. Augmentation, optimisation, when it ends, what it writes."""

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
    """Rotation is drawn from [-degrees, degrees]."""
    translate: tuple[Share, Share] | None = None
    """Largest shift, as fractions of width and height."""
    scale: tuple[float, float] | None = None
    """Range of zoom factors."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Degrees, drawn from [-shear, shear]."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "AffineConfig":
        if self.scale and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be [smallest, largest], above 0")
        return self


class PerspectiveConfig(Section):
    """torchvision's RandomPerspective."""

    distortion_scale: float = Field(default=0.5, ge=0, le=1)
    p: float = Field(default=0.5, ge=0, le=1)


class UnfreezeConfig(Section):
    """From `epoch` on, `modules` learn as well; the learning-rate schedule begins anew."""

    epoch: int = Field(ge=0)
    modules: Annotated[tuple[str, ...], BeforeValidator(_modules)] = Field(min_length=1)
    """Module names, such as `layer4`; `head` is the classifier, `all` everything."""


class TrainConfig(Section):
    """One fine-tuning run."""

    epochs: int = Field(default=5, ge=1)
    batch_size: int = 32
    """Images per rank and micro-batch, at least 2."""
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
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor of the learning rate from each group of layers to the one below it."""
    sched: Literal["cosine", "poly", "tanh", "step", "multistep", "plateau", "none"] = "cosine"
    """timm learning-rate schedule, applied per optimizer step."""
    lr_cycle_limit: int = Field(default=1, ge=1)
    """Cycles of cosine, poly or tanh that fill `epochs`: warm restarts (SGDR)."""
    lr_cycle_mul: float = Field(default=1.0, ge=1)
    """Length of a cycle over the one before."""
    lr_cycle_decay: float = Field(default=1.0, gt=0, le=1)
    """Peak learning rate of a cycle over the one before."""
    decay_epochs: float = Field(default=10, gt=0)
    """Epochs between two decays of `step`."""
    decay_milestones: tuple[int, ...] = ()
    """Epochs of the decays of `multistep`."""
    decay_rate: float = Field(default=0.1, gt=0, le=1)
    """Factor of a decay of step, multistep and plateau."""
    patience_epochs: int = Field(default=2, ge=0)
    """Epochs without a better score that `plateau` waits before it decays."""
    warmup_epochs: int = Field(default=0, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing."""
    aa: str | None = None
    """timm auto-augment policy, e.g. `rand-m7-mstd0.5`."""
    crop: Crop = (0.35, 1.0)
    """Area range of the random resized crop; `center` crops as evaluation does."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    vflip: float = Field(default=0.0, ge=0, le=1)
    color_jitter: float | None = Field(default=None, ge=0)
    """Strength of brightness, contrast and saturation changes."""
    grayscale: float = Field(default=0.0, ge=0, le=1)
    """Probability of losing all colour."""
    affine: AffineConfig | None = None
    perspective: PerspectiveConfig | None = None
    reprob: float = Field(default=0.0, ge=0, le=1)
    """Random-erasing probability."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of MixUp (Zhang et al., 2018); 0 is off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of CutMix (Yun et al., 2019); 0 is off."""
    mixup_prob: float = Field(default=1.0, ge=0, le=1)
    """Probability that a micro-batch is mixed at all."""
    mixup_switch_prob: float = Field(default=0.5, ge=0, le=1)
    """Probability of CutMix where both are on."""
    mixup_off_epoch: int = Field(default=0, ge=0)
    """Epoch from which nothing is mixed any more; 0 is never."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weights of the classes in the loss: inverse to their frequency, or {class: weight} with 1 for
    classes not named."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic-depth rate of the network."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest gradient norm."""
    amp_dtype: Literal["none", "bfloat16", "float16"] = "none"
    tf32: bool = True
    """Let a GPU multiply float32 matrices in TF32."""
    channels_last: bool = False
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool = False
    """torch.compile the network in training."""
    bn_freeze: bool = False
    """Keep BatchNorm statistics at their starting values during training."""
    unfreeze: tuple[UnfreezeConfig, ...] = ()
    """Sections of gradual unfreezing; what no section has named yet is frozen."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better score after which the run ends early; with unfreeze, epochs of the
    last section."""
    model_ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Also keep an exponential moving average of the weights: an ingredient of its own."""
    model_ema_warmup: bool = False
    """Let the decay grow from 0, for runs of few steps."""
    checkpoint_every: int | str = 1
    """Epochs between checkpoints, or "N steps"; the end of training is always one."""
    weights: str | None = None
    """Nothing is trained: the run is this `.safetensors` or torch file, head and all."""
    weights_ema: bool = False
    """Take the averaged weights that timm's train script keeps in the same file."""

    @field_validator("batch_size")
    @classmethod
    def _batch_can_be_normalised_and_mixed(cls, value: int) -> int:
        if value < 2:
            raise ValueError(
                f"got {value}; write 2 or more, for BatchNorm, MixUp and CutMix need other images "
                "(grad_accum_steps adds small micro-batches up)"
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
        """Whether images of a micro-batch are mixed with each other."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    def steps_per_epoch(self, num_images: int, ranks: int) -> int:
        """Optimizer steps per epoch: the short last one counts, unless it would hold fewer than
        two images per rank, which no BatchNorm can normalise. Weights from elsewhere are one."""
        if self.weights is not None:
            return 1
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
