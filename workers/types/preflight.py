"""Results of preflight, which every later order relies on."""

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
    """Bytes of model.safetensors."""
    checkpoint_bytes: int
    """Bytes of one training checkpoint with optimizer state."""
    has_batchnorm: bool
    weights: str | None = None
    """sha256 of the file of `model.checkpoint`. None: no such file."""
    components: tuple[str, ...] = ()
    """Dotted prefixes of groups of layers, in the order a forward pass executes them. Every used
    parameter belongs to exactly one."""
    preprocessing: dict[str, Any]
    """timm's data config: input_size, interpolation, mean, std, crop_pct, crop_mode."""


class PreflightResult(FrozenModel):
    classes: tuple[str, ...]
    splits: dict[str, SplitInfo]
    """`train`, `val`, `test`, `ood:<name>`."""
    corrupt: tuple[str, ...]
    """Keys of images that do not decode. They belong to no split."""
    models: dict[str, ModelInfo]
    """Models by `model_key`."""
    folds: tuple[int, ...] = ()
    """Training images that each fold holds out. Empty: no folds."""
    warnings: tuple[str, ...] = ()


class RunTiming(FrozenModel):
    """What a run was measured to cost per step and per image, for estimates."""

    step_s: float
    """Seconds per optimizer step, data included; the mean over the run's unfreeze phases."""
    score_image_s: float
    """Seconds per image in evaluation, once its pixels are cached."""
    num_steps: int = 0
    """Steps that were timed."""
