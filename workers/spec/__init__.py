"""The sections of the configuration that a worker reads: data, model, base, train.

They live here, beside the code that obeys them; `orchestrator.config` composes them into an
Experiment. A YAML path is a field path is an override path. timm's flag names are kept where timm
has the flag, torchvision's otherwise.
"""

from workers.spec.data import DataSpec
from workers.spec.model import BaseSpec, ModelSpec
from workers.spec.section import Section
from workers.spec.train import (
    AffineSpec,
    PerspectiveSpec,
    TrainSpec,
    UnfreezeSpec,
    num_epochs_begun,
    period_steps,
)

__all__ = [
    "AffineSpec",
    "BaseSpec",
    "DataSpec",
    "ModelSpec",
    "PerspectiveSpec",
    "Section",
    "TrainSpec",
    "UnfreezeSpec",
    "num_epochs_begun",
    "period_steps",
]
