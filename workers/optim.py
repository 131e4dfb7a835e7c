"""Optimizers and learning rates: timm's, on our own parameter groups.

parameters x {decay, no decay} x {body, head} -> optimizer
step -> learning rate of every group, a pure function
"""

import difflib
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from workers.spec import TrainSpec
from workers.types import UserError

WARMUP_LR = 1e-5
"""Where warm-up starts (timm's default), unless the learning rate itself is smaller."""
POLY_POWER = 1.0
"""Of `sched: poly`: a straight line, as in BERT; timm's flag default of 0.1 hardly decays."""

LOOKAHEAD = "lookahead_"
"""timm's prefix for any optimizer with Lookahead around it (Zhang et al. 2019)."""

ParameterGroup = dict[str, Any]


def require_optimizer(name: str) -> None:
    """Raise UserError with the nearest names when timm has no optimizer `name`, or has one that
    needs gradients of gradients, which training does not compute."""
    known = [name for name in list_optimizers() if not get_optimizer_info(name).second_order]
    if name.lower().removeprefix(LOOKAHEAD) in known:
        return
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or ["adamw", "sgd"]
    raise UserError(
        f"train.opt: timm has no first-order optimizer {name!r}; nearest: {', '.join(near)}"
    )


def create_optimizer(model: nn.Module, spec: TrainSpec, head: set[str]) -> Optimizer:
    """timm's optimizer over the parameters of `model` that require gradients.

    `head` holds the names of the classifier's parameters, which learn at `head_lr`.
    """
    require_optimizer(spec.opt)
    groups = parameter_groups(model, spec, head)
    named = dict(model.named_parameters())
    for group in groups:
        group["params"] = [named[name] for name in group.pop("names")]
    try:
        optimizer: Optimizer = create_optimizer_v2(
            groups, spec.opt, lr=spec.lr, weight_decay=spec.weight_decay, momentum=spec.momentum
        )
    except (AssertionError, ImportError) as error:  # timm's way of asking for CUDA, apex, ...
        raise UserError(f"train.opt: {spec.opt} cannot be used here: {error}") from error
    return optimizer


def parameter_groups(model: nn.Module, spec: TrainSpec, head: set[str]) -> list[ParameterGroup]:
    """Up to four groups `{names, weight_decay, lr_scale}`; each parameter lies in exactly one.

    As in timm, vectors, biases and what the model exempts itself do not decay.
    """
    members: dict[tuple[bool, bool], list[str]] = {}
    for name in trained_parameters(model):
        key = (name in head, _decays(model, name))
        members.setdefault(key, []).append(name)
    head_scale = (spec.head_lr or spec.lr) / spec.lr
    return [
        {
            "names": names,
            "weight_decay": spec.weight_decay if decays else 0.0,
            "lr_scale": head_scale if in_head else 1.0,
        }
        for (in_head, decays), names in sorted(members.items())
    ]


def trained_parameters(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order by which its state dict counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def create_schedule(optimizer: Optimizer, spec: TrainSpec, steps_per_epoch: int) -> Scheduler:
    """timm's scheduler, per optimizer step: `step_update(step)` sets the rates of that step.

    It has no memory: a resumed run calls it with its step and learns at the same rates.
    """
    scheduler, _ = create_scheduler_v2(
        optimizer,
        # timm's `none` would skip warm-up and head_lr as well.
        sched="constant" if spec.sched == "none" else spec.sched,
        num_epochs=spec.epochs,
        min_lr=spec.min_lr,
        warmup_epochs=spec.warmup_epochs,
        warmup_lr=min(WARMUP_LR, spec.lr),
        decay_rate=POLY_POWER,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    assert scheduler is not None, f"timm made no scheduler for {spec.sched}"
    return scheduler


def body_lr(optimizer: Optimizer) -> float:
    """The learning rate before `head_lr` scales it."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group.get("lr_scale", 1.0))


def _decays(model: nn.Module, name: str) -> bool:
    exemptions: Any = getattr(model, "no_weight_decay", set)
    exempt = exemptions()
    is_vector = model.get_parameter(name).ndim <= 1 or name.endswith(".bias")
    return not is_vector and name not in exempt
