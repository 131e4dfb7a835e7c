"""model and base: the architecture, where its weights come from, and the common start of runs."""

from typing import Any, Literal

from pydantic import Field, model_validator

from workers.config import Section


class ModelConfig(Section):
    """A timm architecture and where its weights come from."""

    name: str
    """timm model name."""
    pretrained: bool = False
    """Start from timm's published weights (downloaded by timm)."""
    checkpoint: str | None = None
    """Local `.safetensors` or `.pth` weights of the same architecture; its head is replaced."""
    head: Literal["linear", "se", "attention"] = "linear"
    """`linear`: the architecture's own classifier; `se`: squeeze-and-excitation of the feature map
    before it (Hu et al., 2018); `attention`: multi-head attention pooling in place of the
    architecture's own pooling (Lee et al., 2019)."""
    kwargs: dict[str, Any] = {}
    """Passed to `timm.create_model`, e.g. {pad_type: same}."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.pretrained and self.checkpoint:
            raise ValueError("give either pretrained: true or checkpoint, not both")
        return self


class BaseConfig(Section):
    """How the common starting point of all runs of a cohort is made."""

    init: Literal["zero", "timm", "checkpoint", "none"] = "zero"
    """Initial classifier: all zeros, timm's initialisation, or that of `model.checkpoint` (all
    zeros where its classes are others). `none`: all runs are `train.weights` whose common start is
    not known, so nothing is measured from it."""
    probe_epochs: int = Field(default=0, ge=0)
    """Epochs of training the classifier alone on the frozen backbone (LP-FT)."""
    trunk_epochs: int = Field(default=0, ge=0)
    """Epochs of training the whole network once, before the runs part ways."""
