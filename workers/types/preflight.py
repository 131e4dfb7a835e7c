"""What preflight finds out once, and every later order relies on."""

from typing import Any

from workers.types.values import FrozenModel


class SplitInfo(FrozenModel):
    count: int
    fingerprint: str
    """sha256 over (key, label, content) of every sample in split order."""
    class_counts: tuple[int, ...]


class ModelInfo(FrozenModel):
    num_parameters: int
    model_bytes: int
    """Of model.safetensors."""
    checkpoint_bytes: int
    """Of one training checkpoint with optimizer state."""
    has_batchnorm: bool
    weights: str | None = None
    """sha256 of the file that model.checkpoint names."""
    components: tuple[str, ...] = ()
    """Groups of layers that a forward pass executes, in that order, as dotted prefixes; every
    parameter that is used lies in exactly one."""
    preprocessing: dict[str, Any]
    """timm's data config: input_size, interpolation, mean, std, crop_pct, crop_mode."""


class PreflightResult(FrozenModel):
    classes: tuple[str, ...]
    splits: dict[str, SplitInfo]
    """`train`, `val`, `test`, `ood:<name>`."""
    corrupt: tuple[str, ...]
    """Keys of images that do not decode; they belong to no split."""
    models: dict[str, ModelInfo]
    """By `model_key`."""
    folds: tuple[int, ...] = ()
    """Training images that each fold holds out; empty without data.folds."""
    warnings: tuple[str, ...] = ()


class RunTiming(FrozenModel):
    """What a run was measured to cost per step and per image, for estimates."""

    step_s: float
    """Seconds per optimizer step, data included; the mean over the run's unfreeze phases."""
    score_image_s: float
    """Seconds per image in evaluation, once its pixels are cached."""
    num_steps: int = 0
    """Steps that were timed."""
