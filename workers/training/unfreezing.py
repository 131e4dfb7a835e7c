"""Unfreeze phases: which modules are trained from which epoch on (`train.unfreeze`).

epoch -> UnfreezePhase: first epoch, end, modules -> names of the parameters that are trained

Frozen modules do not change, their BatchNorm statistics included. A probe has one phase: the head.
"""

from dataclasses import dataclass

from torch import nn

from workers.config.train import TrainConfig
from workers.errors import UserError, similar_names
from workers.models.build import head_parameter_names
from workers.training.optim import layer_of
from workers.types import RunSpec

HEAD, ALL = "head", "all"
"""Names of the classifier and of all modules."""


@dataclass(frozen=True)
class UnfreezePhase:
    """Epochs `first` to `end` - 1, in which the same modules are trained."""

    first: int
    end: int
    modules: tuple[str, ...]

    @property
    def num_epochs(self) -> int:
        return self.end - self.first


def phases(run: RunSpec) -> list[UnfreezePhase]:
    """The phases of a run, which cover its epochs; their modules are cumulative."""
    spec = run.train
    if run.role == "probe" or not spec.unfreeze:
        return [UnfreezePhase(0, spec.epochs, (HEAD if run.role == "probe" else ALL,))]
    ends = [section.epoch for section in spec.unfreeze[1:]] + [spec.epochs]
    modules: tuple[str, ...] = ()
    result = []
    for section, end in zip(spec.unfreeze, ends, strict=True):
        modules += section.modules
        result.append(UnfreezePhase(section.epoch, end, modules))
    return result


def phase_at(run: RunSpec, epoch: int) -> UnfreezePhase:
    """The phase of an epoch; the last one for all later epochs."""
    begun = [phase for phase in phases(run) if phase.first <= epoch]
    return begun[-1]


def trainable_names(net: nn.Module, modules: tuple[str, ...]) -> set[str]:
    """Names of the parameters of these modules."""
    head = head_parameter_names(net) if HEAD in modules else set()
    names = [name for name, _ in net.named_parameters()]
    return {name for name in names if name in head or is_below(modules, name)}


def is_below(modules: tuple[str, ...], name: str) -> bool:
    """Whether a module or parameter is, or is inside, one of `modules`, `head` aside."""
    return any(module == ALL or f"{name}.".startswith(f"{module}.") for module in modules)


def require_model_features(model: nn.Module, spec: TrainConfig) -> None:
    """Raises UserError if the model lacks what `train` needs: modules to unfreeze, layers for
    `layer_decay`, gradient checkpointing."""
    for section in spec.unfreeze:
        for module in section.modules:
            _require_module(model, module)
    if spec.layer_decay is not None and len(set(layer_of(model).values())) < 2:
        raise UserError(
            f"train.layer_decay {spec.layer_decay}: timm knows no layers of "
            f"{type(model).__name__}; remove it, or choose another model.name"
        )
    if spec.grad_checkpointing:
        set_checkpointing(model, True)
        set_checkpointing(model, False)


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """timm's `set_grad_checkpointing`. Raises UserError for a model without it."""
    try:
        model.set_grad_checkpointing(on)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"train.grad_checkpointing: {type(model).__name__} has none; set it to false, or "
            "choose another model.name"
        ) from error


def _require_module(model: nn.Module, module: str) -> None:
    if trainable_names(model, (module,)):
        return
    names = sorted({_parent(name) for name, _ in model.named_parameters()} | {HEAD, ALL})
    top = list(dict.fromkeys(name.partition(".")[0] for name in names))
    near = similar_names(module, [*top, *names]) or top[:3]
    raise UserError(
        f"train.unfreeze: the model has no module {module!r} with anything to learn; "
        f"nearest: {', '.join(near)}"
    )


def _parent(name: str) -> str:
    return name.rpartition(".")[0] or name
