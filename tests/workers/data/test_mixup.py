"""MixUp and CutMix: targets that match the mixed pixels, drawn from one generator."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from workers.config.train import TrainConfig
from workers.data import Mixing

C = 7


def _batch(size: int, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Image k has value k + 1 everywhere, and class k modulo C."""
    x = torch.arange(1.0, size + 1).view(-1, 1, 1, 1).expand(size, 3, side, side).contiguous()
    return x, torch.arange(size) % C


def _mix(
    spec: TrainConfig, size: int, seed: int, epoch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return Mixing(spec, C).mix(*_batch(size), epoch)


def _rates(spec: TrainConfig, num: int = 600) -> tuple[float, float]:
    """Shares of micro-batches mixed by MixUp and by CutMix."""
    mixing, (x, y) = Mixing(spec, C), _batch(3, side=40)
    torch.manual_seed(0)
    mixups = cutmixes = 0
    for _ in range(num):
        mixed, targets = mixing.mix(x, y, 0)
        if targets is not y:
            blended = (mixed != mixed.round()).any()
            mixups, cutmixes = mixups + bool(blended), cutmixes + (not blended)
    return mixups / num, cutmixes / num


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 9), seed=st.integers(0, 2**31), alpha=st.sampled_from([0.1, 0.4, 1.0]))
def test_targets_weigh_each_class_by_its_share_of_the_pixels(
    size: int, seed: int, alpha: float
) -> None:
    for spec in (
        TrainConfig(mixup=alpha),
        TrainConfig(cutmix=alpha),
        TrainConfig(mixup=1, cutmix=1),
    ):
        x, y = _batch(size)
        mixed, targets = _mix(spec, size, seed)
        assert mixed.shape == x.shape and mixed.dtype == targets.dtype == torch.float32
        assert targets.shape == (size, C)
        torch.testing.assert_close(targets.sum(1), torch.ones(size))
        # Every value belongs to one image, so the mean gives the share of each image.
        share = (mixed.mean((1, 2, 3)) - x.roll(1, 0)[:, 0, 0, 0]) / (x - x.roll(1, 0))[:, 0, 0, 0]
        expected = torch.zeros(size, C)
        expected.scatter_add_(1, y[:, None], share[:, None])
        expected.scatter_add_(1, y.roll(1, 0)[:, None], 1 - share[:, None])
        torch.testing.assert_close(targets, expected, atol=1e-4, rtol=0)


def test_cutmix_pastes_one_rectangle_whose_area_is_lambda() -> None:
    areas = []
    for seed in range(300):
        mixed, targets = _mix(TrainConfig(cutmix=1.0), 4, seed)
        pasted = mixed[1, 0] == 1
        assert ((mixed[1, 0] == 2) | pasted).all()
        area = pasted.float().mean().item()
        rows, columns = pasted.any(1).sum().item(), pasted.any(0).sum().item()
        assert pasted.sum().item() == rows * columns
        assert targets[1].tolist() == pytest.approx([area, 1 - area, 0, 0, 0, 0, 0])
        areas.append(area)
    # lambda is uniform, but boxes are cut off at the edges and round down to whole pixels.
    assert 0.2 < np.mean(areas) < 0.45 and np.std(areas) > 0.15


def test_bits_are_torchvisions() -> None:
    x, y = _batch(5)
    for spec, theirs in (
        (TrainConfig(mixup=0.4, mixup_prob=1.0), v2.MixUp(alpha=0.4, num_classes=C)),
        (TrainConfig(cutmix=0.4, mixup_prob=1.0), v2.CutMix(alpha=0.4, num_classes=C)),
    ):
        torch.manual_seed(3)
        torch.rand(())  # the draw of whether to mix
        expected = theirs(x, y)
        assert all(torch.equal(a, b) for a, b in zip(_mix(spec, 5, 3), expected, strict=True))


def test_probabilities_are_those_configured() -> None:
    mixups, cutmixes = _rates(
        TrainConfig(mixup=1, cutmix=1, mixup_prob=0.6, mixup_switch_prob=0.25)
    )
    assert mixups == pytest.approx(0.45, abs=0.06) and cutmixes == pytest.approx(0.15, abs=0.05)
    assert _rates(TrainConfig(mixup=1, mixup_switch_prob=1.0), 50) == (1, 0)
    assert _rates(TrainConfig(cutmix=1, mixup_switch_prob=0.0), 50) == (0, 1)
    assert _rates(TrainConfig(mixup=1, mixup_prob=0.0), 50) == (0, 0)


def test_unmixed_batches_are_unchanged() -> None:
    x, y = _batch(3)
    off = TrainConfig(mixup=1, mixup_off_epoch=2)
    for spec, epoch in (
        (TrainConfig(), 0),
        (off, 2),
        (off, 3),
        (TrainConfig(cutmix=1, mixup_prob=0), 0),
    ):
        mixed, targets = Mixing(spec, C).mix(x, y, epoch)
        assert mixed is x and targets is y
    assert [Mixing(off, C).off_at(epoch) for epoch in range(4)] == [False, False, True, True]
    assert not Mixing(TrainConfig(mixup=1), C).off_at(10**6)
    assert _mix(off, 3, seed=0, epoch=1)[1].shape == (3, C)


def test_only_torchs_generator_is_used() -> None:
    spec = TrainConfig(mixup=1, cutmix=1)
    for seed in range(10):
        first = _mix(spec, 4, seed)
        random.seed(seed)
        np.random.seed(seed)
        state = random.getstate()
        again = _mix(spec, 4, seed)
        assert random.getstate() == state
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(_mix(spec, 4, 0)[1], _mix(spec, 4, 1)[1])
    x, y = _batch(4)
    Mixing(spec, C).mix(x, y, 0)
    assert torch.equal(x, _batch(4)[0]) and torch.equal(y, _batch(4)[1])


def test_one_image_alone_cannot_be_mixed() -> None:
    with pytest.raises(AssertionError, match="two or more"):
        _mix(TrainConfig(mixup=1), 1, 0)


@pytest.mark.gpu
def test_a_gpu_mixes_as_the_cpu_does() -> None:
    for spec in (TrainConfig(mixup=0.4), TrainConfig(cutmix=1.0)):
        x, y = _batch(6)
        torch.manual_seed(1)
        expected = Mixing(spec, C).mix(x, y, 0)
        torch.manual_seed(1)
        mixed = Mixing(spec, C).mix(x.cuda(), y.cuda(), 0)
        for ours, theirs in zip(mixed, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs)
