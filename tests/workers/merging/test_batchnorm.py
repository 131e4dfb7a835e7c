"""BatchNorm statistics of a mix against plain torch."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.workers.small_soups import NUM_SAMPLES, RESNET, Pool, make_pool
from workers.data import eval_pixels, normalise
from workers.merging import batchnorm
from workers.merging.taste import load_mix
from workers.models.build import preprocessing
from workers.storage.checkpoints import open_weights
from workers.types import Mix


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), RESNET)


def mixed(pool: Pool, policy: str, mix: Mix) -> dict[str, torch.Tensor]:
    model = pool.worker.model(RESNET)
    cohort = pool.cohort.model_copy(update={"batchnorm": policy})
    load_mix(model, mix, cohort, pool.members, pool.worker)
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def stored(pool: Pool, index: int) -> dict[str, torch.Tensor]:
    with open_weights(pool.worker.store, pool.members[index]) as weights:
        return {key: tensor.clone() for key, tensor in weights.items()}


def test_recomputed_statistics_equal_those_of_torchs_own_update(pool: Pool) -> None:
    """The reference: average the state dicts, then `update_bn` over the same batch. It sets all
    modules to train mode, which is the same for a network without dropout."""
    mix = Mix.mean(pool.names[:2])
    found = mixed(pool, "recompute", mix)
    reference = timm.create_model("test_resnet", num_classes=10)
    one, two = stored(pool, 0), stored(pool, 1)
    reference.load_state_dict(
        {k: ((v.double() + two[k].double()) / 2).to(v.dtype) for k, v in one.items()}
    )
    config = preprocessing(reference, pool.worker.config.data)
    pixels = eval_pixels(pool.worker.images, "train", config)[:64]
    torch.optim.swa_utils.update_bn([normalise(pixels, config)], reference)
    assert NUM_SAMPLES == 65, "one image is left over, and dropped"
    for key, tensor in reference.state_dict().items():
        assert torch.equal(found[key], tensor), key


def test_a_mix_of_one_keeps_its_statistics_whatever_the_policy(pool: Pool) -> None:
    for policy in ("recompute", "average", "best", "frozen"):
        found = mixed(pool, policy, Mix(weights=((pool.names[1], 2.0),), divisor=2.0))
        assert all(torch.equal(found[key], tensor) for key, tensor in stored(pool, 1).items())


def test_average_blends_statistics_and_best_takes_those_of_the_first(pool: Pool) -> None:
    mix = Mix.mean([pool.names[2], pool.names[0]])
    two, zero = stored(pool, 2), stored(pool, 0)
    average, best = mixed(pool, "average", mix), mixed(pool, "best", mix)
    statistics = set(batchnorm.statistics(pool.worker.model(RESNET)))
    assert len(statistics) > 3 and "bn1.running_var" in statistics
    for key, tensor in two.items():
        if not tensor.is_floating_point():
            assert torch.equal(average[key], tensor)
            continue
        mean = ((tensor.double() + zero[key].double()) / 2).to(tensor.dtype)
        assert torch.equal(average[key], mean)
        assert torch.equal(best[key], tensor if key in statistics else mean)


def test_only_batchnorm_trains_and_all_flags_are_restored(pool: Pool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)
            self.modes: list[tuple[bool, bool]] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.modes.append((self.norm.training, self.drop.training))
            return self.drop(self.norm(x))

    net = Net().train()
    net.norm.eval()
    pixels = torch.randint(0, 256, (130, 3, 4, 4), dtype=torch.uint8)
    config = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    touched: list[None] = []
    batchnorm.recompute(net, pixels, config, "cpu", lambda: touched.append(None))
    assert net.modes == [(True, False)] * 3
    assert len(touched) == 3
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert net.norm.momentum == 0.3
    assert net.norm.num_batches_tracked == 3


def test_the_mix_does_not_depend_on_the_workers_earlier_weights(pool: Pool, tmp_path: Path) -> None:
    mix = Mix.mean(pool.names)
    first = mixed(pool, "recompute", mix)
    mixed(pool, "average", Mix.mean(pool.names[1:]))
    again = mixed(pool, "recompute", mix)
    pool.worker.forget()
    fresh = mixed(pool, "recompute", mix)
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key]) and torch.equal(tensor, fresh[key])
