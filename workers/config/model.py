"""model and base: the architecture, its initial weights, and the common start of runs."""

from typing import Any, Literal

from pydantic import Field, model_validator

from workers.config import Section


class ModelConfig(Section):
    """A timm architecture and its initial weights."""

    name: str
    """Name of a timm model."""
    pretrained: bool = False
    """Start from timm's published weights, which timm downloads."""
    checkpoint: str | None = None
    """Local `.safetensors` or `.pth` file with weights of the architecture, all but its head. None:
    no file."""
    head: Literal["linear", "se", "attention"] = "linear"
    """`linear`: the architecture's own classifier. `se`: squeeze-and-excitation of the feature map
    before it (Hu et al., 2018). `attention`: multi-head attention pooling in place of the
    architecture's own pooling (Lee et al., 2019)."""
    kwargs: dict[str, Any] = {}
    """Arguments of `timm.create_model`, e.g. {pad_type: same}."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.pretrained and self.checkpoint:
            raise ValueError("give either pretrained: true or checkpoint, not both")
        return self


class BaseConfig(Section):
    """The common starting point of all runs of a cohort."""

    init: Literal["zero", "timm", "checkpoint", "none"] = "zero"
    """Initial classifier. `zero`: all zeros. `timm`: timm's initialisation. `checkpoint`: that of
    `model.checkpoint`, or zeros if its shape differs. `none`: no base, for runs that all set
    `train.weights` and have no known common start."""
    probe_epochs: int = Field(default=0, ge=0)
    """Epochs of training the classifier alone on the frozen backbone, before all runs (LP-FT)."""
    trunk_epochs: int = Field(default=0, ge=0)
    """Epochs of training the whole network once, before all runs."""
