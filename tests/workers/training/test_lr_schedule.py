"""Learning rates over steps, restarts, plateaus; the end of patience."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from workers.config.train import TrainConfig
from workers.training.lr_schedule import AFTER_RESTART, Schedule, num_decays, patience_is_over

STEPS_PER_EPOCH = 5
SCORES = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.1, 0.10000001, 0.2, 0.7]), max_size=12)


def _optimizer(lr: float, scale: float = 0.5) -> torch.optim.Optimizer:
    """Two groups, of which the second is scaled."""
    groups = [{"params": [torch.zeros(1)], "lr_scale": each} for each in (1.0, scale)]
    return torch.optim.SGD(groups, lr=lr)


def _rates(
    spec: TrainConfig,
    steps: range,
    scores: tuple[float, ...] = (),
    per_epoch: int = STEPS_PER_EPOCH,
) -> list[float]:
    optimizer = _optimizer(spec.lr)
    schedule = Schedule(optimizer, spec, per_epoch, spec.epochs)
    rates = []
    for step in steps:
        schedule.set(step, scores[: step // per_epoch])
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == first * 0.5
        rates.append(first)
    return rates


@pytest.mark.parametrize(
    "options",
    [
        {"sched": "cosine"},
        {"sched": "cosine", "lr_cycle_limit": 2, "lr_cycle_decay": 0.5},
        {"sched": "poly", "lr_cycle_limit": 2, "lr_cycle_mul": 2.0},
        {"sched": "tanh"},
        {"sched": "step", "decay_epochs": 1.5},
        {"sched": "multistep", "decay_milestones": (1, 3)},
        {"sched": "plateau", "patience_epochs": 0},
        {"sched": "none"},
    ],
)
def test_the_rate_is_a_function_of_the_step_and_the_scores_alone(
    options: dict[str, object],
) -> None:
    spec = TrainConfig.model_validate(
        {"epochs": 4, "warmup_epochs": 1, "min_lr": 1e-4, "lr": 0.1, **options}
    )
    steps, scores = range(4 * STEPS_PER_EPOCH), (0.5, 0.5, 0.4, 0.4)
    undisturbed = _rates(spec, steps, scores)
    for start in (1, STEPS_PER_EPOCH, 13):
        assert _rates(spec, steps[start:], scores) == undisturbed[start:]


@pytest.mark.parametrize("sched", ["cosine", "poly", "tanh"])
def test_the_rate_warms_up_and_then_falls_to_its_minimum(sched: str) -> None:
    spec = TrainConfig.model_validate(
        {"sched": sched, "epochs": 4, "warmup_epochs": 1, "lr": 0.1, "min_lr": 0.01}
    )
    rates = _rates(spec, range(4 * STEPS_PER_EPOCH + 1))
    assert rates[:STEPS_PER_EPOCH] == sorted(rates[:STEPS_PER_EPOCH])
    assert rates[STEPS_PER_EPOCH:] == sorted(rates[STEPS_PER_EPOCH:], reverse=True)
    assert rates[0] < 1e-4 and rates[-1] == pytest.approx(0.01)


def test_one_cycle_is_timms() -> None:
    spec = TrainConfig(epochs=4, warmup_epochs=1, lr=0.1, min_lr=0.01)
    optimizer = _optimizer(0.1)
    timms = CosineLRScheduler(
        optimizer,
        t_initial=4 * STEPS_PER_EPOCH,
        lr_min=0.01,
        warmup_t=STEPS_PER_EPOCH,
        warmup_lr_init=1e-5,
        t_in_epochs=False,
    )
    for step, rate in enumerate(_rates(spec, range(4 * STEPS_PER_EPOCH))):
        timms.step_update(step)
        assert optimizer.param_groups[0]["lr"] == rate


@given(
    st.sampled_from(["cosine", "poly", "tanh"]),
    st.integers(1, 6),
    st.sampled_from([1.0, 1.01, 1.5, 2.0, 3.0]),
    st.integers(7, 40),
)
@example("cosine", 5, 1.01, 25)
@settings(deadline=None)
def test_cycles_fill_the_epochs_and_each_begins_at_its_peak(
    sched: str, limit: int, mul: float, per_epoch: int
) -> None:
    cycles = {"lr_cycle_limit": limit, "lr_cycle_mul": mul, "lr_cycle_decay": 0.5}
    spec = TrainConfig.model_validate({"sched": sched, "epochs": limit * 4, "lr": 1.0, **cycles})
    steps = spec.epochs * per_epoch
    rates = _rates(spec, range(steps), per_epoch=per_epoch)
    first = steps / sum(mul**i for i in range(limit))
    assume(first >= 10)
    ends = [first * sum(mul**i for i in range(n)) for n in range(limit + 1)]
    begins = [step for step in range(steps) if step == 0 or rates[step] > rates[step - 1]]
    # A schedule with restarts is asked that much later, so a cycle that begins within it has begun.
    shift = AFTER_RESTART if limit > 1 else 0
    assume(all(abs(end - shift - round(end - shift)) > 1e-6 for end in ends[1:-1]))
    assert begins == [max(0, math.ceil(end - shift)) for end in ends[:-1]]
    for number, begin in enumerate(begins):
        length, late = first * mul**number, begin - ends[number]
        assert rates[begin] <= 0.5**number
        if abs(late) <= AFTER_RESTART:
            assert rates[begin] == pytest.approx(0.5**number, rel=2e-3)
        assert late / length < 0.1 and rates[begin] > 0.5 ** (number + 1)


def test_steps_decay_at_the_beginning_of_their_epochs() -> None:
    spec = TrainConfig(sched="step", epochs=6, decay_epochs=2, decay_rate=0.1, lr=1.0)
    assert _rates(spec, range(9, 12)) == pytest.approx([1.0, 0.1, 0.1])
    spec = TrainConfig(sched="multistep", epochs=6, decay_milestones=(2, 3), decay_rate=0.1, lr=1.0)
    assert _rates(spec, range(9, 12)) == pytest.approx([1.0, 0.1, 0.1])
    assert _rates(spec, range(14, 16)) == pytest.approx([0.1, 0.01])


def test_without_a_schedule_the_rate_stays() -> None:
    assert _rates(TrainConfig(sched="none", lr=0.1, epochs=2), range(10)) == [0.1] * 10


def test_a_plateau_decays_after_warm_up_and_down_to_the_minimum() -> None:
    spec = TrainConfig(
        sched="plateau",
        epochs=8,
        warmup_epochs=2,
        patience_epochs=0,
        decay_rate=0.1,
        lr=1.0,
        min_lr=0.05,
    )
    rates = _rates(spec, range(0, 40, STEPS_PER_EPOCH), (0.5,) * 8)
    assert rates[2:] == pytest.approx([1.0, 1.0, 0.1, 0.05, 0.05, 0.05])


def test_warm_up_that_does_not_fit_a_phase_is_left_out() -> None:
    optimizer = _optimizer(0.1)
    Schedule(optimizer, TrainConfig(epochs=5, warmup_epochs=2, lr=0.1), 10, 2).set(0)
    assert optimizer.param_groups[0]["lr"] == 0.1


@given(SCORES, st.integers(0, 3))
def test_decays_are_those_of_torchs_plateau(scores: list[float], patience: int) -> None:
    """torch defines a relative gain of a negative score only where lower is better."""
    sign = -1 if any(score < 0 for score in scores) else 1
    scores = [-abs(score) if sign < 0 else score for score in scores]
    optimizer = _optimizer(1.0)
    plateau = ReduceLROnPlateau(
        optimizer, mode="min" if sign < 0 else "max", factor=0.5, patience=patience, eps=0
    )
    for score in scores:
        plateau.step(sign * score)
    assert optimizer.param_groups[0]["lr"] == 0.5 ** num_decays(scores, patience)


@pytest.mark.parametrize(
    ("scores", "patience", "over"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.6], 1, False),
        ([0.5, 0.6, 0.6], 2, False),
        ([0.5, 0.6, 0.6, 0.1], 2, True),
        ([0.5, 0.4, 0.3], None, False),
    ],
)
def test_patience_ends_when_the_best_score_is_old(
    scores: list[float], patience: int | None, over: bool
) -> None:
    assert patience_is_over(scores, patience, len(scores)) == over


def test_earlier_phases_do_not_count_for_patience() -> None:
    assert not patience_is_over([0.5, 0.4, 0.4], 2, counted=1)
    assert patience_is_over([0.5, 0.4, 0.4, 0.4], 2, counted=2)
