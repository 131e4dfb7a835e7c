"""Learning rates and early stopping, as pure functions of the step and the scores so far.

step, scores of finished epochs -> rate of every group        scores -> patience is over
"""

from collections.abc import Sequence

from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from workers.config.train import TrainConfig

WARMUP_LR = 1e-5
"""First rate of the warm-up (timm's default), unless the learning rate itself is smaller."""
POLY_POWER = 1.0
"""Exponent of `sched: poly`: a straight line, as in BERT; timm's default of 0.1 hardly decays."""
BETTER_BY = 1e-4
"""Least relative gain for `plateau` (torch's default)."""
AFTER_RESTART = 1e-4
"""Steps added for a schedule with restarts: at the first step of a cycle, rounding may still place
it in the cycle before, at its lowest rate."""


class Schedule:
    """timm's scheduler over `num_epochs` epochs, per optimizer step, without memory.

    A resumed run so has the same rates. Cycles of cosine, poly and tanh (SGDR, Loshchilov and
    Hutter, 2017) fill the epochs. `plateau` replays the scores of all epochs since warm-up like
    torch's ReduceLROnPlateau.
    """

    def __init__(
        self, optimizer: Optimizer, spec: TrainConfig, steps_per_epoch: int, num_epochs: int
    ) -> None:
        self._spec = spec
        self._warmup_epochs = spec.warmup_epochs if spec.warmup_epochs < num_epochs else 0
        self._shift = AFTER_RESTART if spec.lr_cycle_limit > 1 else 0
        self._rates = self._timm_scheduler(optimizer, steps_per_epoch, num_epochs)

    def set(self, step: int, scores: Sequence[float] = ()) -> None:
        """Set the rate of every parameter group for `step`, counted from the schedule's beginning.

        `scores` are those of all epochs of the schedule that have ended.
        """
        self._rates.step_update(step + self._shift)
        spec = self._spec
        if spec.sched == "plateau":
            after_warmup = scores[self._warmup_epochs :]
            if decays := num_decays(after_warmup, spec.patience_epochs):
                rate = max(spec.lr * spec.decay_rate**decays, spec.min_lr)
                self._rates.update_groups(rate)

    def _timm_scheduler(
        self, optimizer: Optimizer, steps_per_epoch: int, num_epochs: int
    ) -> Scheduler:
        spec = self._spec
        # timm's `none` would skip warm-up and the scales of groups; its `plateau` has a memory.
        flat = spec.sched in ("none", "plateau")
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="constant" if flat else spec.sched,
            num_epochs=num_epochs / _cycles(spec),
            min_lr=spec.min_lr,
            warmup_epochs=self._warmup_epochs,
            warmup_lr=min(WARMUP_LR, spec.lr),
            decay_epochs=spec.decay_epochs,
            # timm decays a step before the milestone; half a step later it decays exactly there.
            decay_milestones=[m + 0.5 / steps_per_epoch for m in spec.decay_milestones],
            decay_rate=POLY_POWER if spec.sched == "poly" else spec.decay_rate,
            cycle_mul=spec.lr_cycle_mul,
            cycle_decay=spec.lr_cycle_decay,
            cycle_limit=spec.lr_cycle_limit,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
        assert scheduler is not None, f"timm made no scheduler for {spec.sched}"
        return scheduler


def _cycles(spec: TrainConfig) -> float:
    """Length of all cycles together, over that of the first one."""
    return sum(spec.lr_cycle_mul**i for i in range(spec.lr_cycle_limit))


def num_decays(scores: Sequence[float], patience: int) -> int:
    """Number of decays of torch's ReduceLROnPlateau for these scores, one per epoch.

    Higher is better. A decay follows `patience` + 1 epochs without a gain; then counting restarts.
    """
    if not scores:
        return 0
    best, bad, decays = scores[0], 0, 0
    for score in scores[1:]:
        if score > best + BETTER_BY * abs(best):
            best, bad = score, 0
        else:
            bad += 1
        if bad > patience:
            bad, decays = 0, decays + 1
    return decays


def patience_is_over(scores: Sequence[float], patience: int | None, counted: int) -> bool:
    """Whether the best of the scores, one per epoch, is `patience` epochs old.

    Only the last `counted` epochs count as age, because those before belong to earlier unfreeze
    phases; the best score may be among them.
    """
    if patience is None or not scores:
        return False
    age = len(scores) - 1 - scores.index(max(scores))
    return min(age, counted) >= patience
