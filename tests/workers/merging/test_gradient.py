"""Gradients by the weights of a mix, against all ingredients in memory at once, in float64."""

import copy

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from tests.workers.small_soups import RESNET, VIT, Pool, make_pool
from workers.data import eval_pixels, normalise
from workers.merging.gradient import batch_of, measure_gradient
from workers.models.build import preprocessing
from workers.storage.checkpoints import open_weights
from workers.types import (
    Checkpoint,
    Component,
    GradientOrder,
    Measured,
    Mix,
    MixGradient,
    MixGradientResult,
    component_of,
)

COMPONENTS = {"test_vit": ("", "blocks.0", "head"), "test_resnet": ("", "layer1", "fc")}


@pytest.fixture(scope="module", params=[VIT, RESNET], ids=lambda spec: spec.name)
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), request.param)


def everyone(pool: Pool) -> tuple[Checkpoint, ...]:
    return (*pool.members, pool.base)


def question_of(pool: Pool, **changes: object) -> MixGradient:
    """Different weights, one of the base and one negative; a short last batch."""
    components = COMPONENTS[pool.cohort.model.name]
    names = [each.name for each in everyone(pool)]
    mix = Mix(
        weights=tuple(zip(names, (1.5, 0.0, -0.25, 0.75), strict=True)),
        divisor=2.0,
        components=(
            Component(prefix=components[1], weights=(0.5, 0.5, 0.5, 0.5)),
            Component(prefix=components[2], weights=(0.0, 1.0, 1.25, -0.25)),
        ),
    )
    given = {"mix": mix, "components": components, "epoch": 1, "batch": 2, "batch_size": 64}
    return MixGradient(**{**given, "temperature": 1.3, **changes})


def slope(pool: Pool, question: MixGradient) -> MixGradientResult:
    order = GradientOrder(cohort=pool.cohort, question=question, ingredients=everyone(pool))
    (event,) = measure_gradient(order, 0, pool.worker)
    assert isinstance(event, Measured) and isinstance(event.answer, MixGradientResult)
    assert event.key == question.key and event.cohort == "c"
    assert event.samples == len(batch_of(question, pool.worker.config.seed, 150))
    return event.answer


class Direct:
    """The loss as a function of the table of weights, everything in memory, in float64."""

    def __init__(self, pool: Pool, question: MixGradient) -> None:
        worker = pool.worker
        self.question = question
        self.net = copy.deepcopy(worker.model(pool.cohort.model)).double().eval()
        self.members = [dict(open_weights(worker.store, each)) for each in everyone(pool)]
        config = preprocessing(self.net, worker.config.data)
        batch = batch_of(question, worker.config.seed, 150)
        pixels = eval_pixels(worker.images, "val", config)[torch.from_numpy(batch)]
        self.images = normalise(pixels, config).double()
        self.labels = torch.from_numpy(worker.images.labels("val")[batch])
        rows = {each.prefix: each.weights for each in question.mix.components}
        rows[""] = tuple(weight for _, weight in question.mix.weights)
        table = [rows[prefix] for prefix in question.components]
        self.table = torch.tensor(table, dtype=torch.float64)

    def loss(self, table: Tensor, temperature: Tensor | float) -> Tensor:
        logits = functional_call(self.net, self._blended(table), (self.images,))
        return torch.nn.functional.cross_entropy(logits * temperature, self.labels)

    def _blended(self, table: Tensor) -> dict[str, Tensor]:
        blended = {}
        for key, first in self.members[0].items():
            if first.is_floating_point():
                row = table[self.question.components.index(self._component(key))]
                terms = [w * m[key].double() for w, m in zip(row, self.members, strict=True)]
                blended[key] = torch.stack(terms).sum(0) / self.question.mix.divisor
        return blended

    def _component(self, key: str) -> str:
        found = component_of(key, self.question.components)
        assert found is not None
        return found


def test_gradients_are_those_of_the_loss_as_a_function_of_the_weights(pool: Pool) -> None:
    """By finite differences, including BatchNorm statistics."""
    question = question_of(pool)
    found, direct, h = slope(pool, question), Direct(pool, question), 1e-6
    scale = max(abs(value) for row in found.weights for value in row)
    with torch.no_grad():
        assert found.loss == pytest.approx(float(direct.loss(direct.table, 1.3)), rel=1e-5)
        for row in range(3):
            for column in range(4):
                step = torch.zeros_like(direct.table)
                step[row, column] = h
                up, down = (direct.loss(direct.table + s, 1.3) for s in (step, -step))
                expected = float(up - down) / (2 * h)
                assert found.weights[row][column] == pytest.approx(expected, abs=2e-4 * scale)
        up, down = (float(direct.loss(direct.table, 1.3 + s)) for s in (h, -h))
        assert found.temperature == pytest.approx((up - down) / (2 * h), rel=1e-4)


def test_gradients_are_those_of_autograd_without_statistics(pool: Pool) -> None:
    if pool.cohort.model != VIT:
        pytest.skip("torch has no gradient of BatchNorm statistics")
    question = question_of(pool)
    found, direct = slope(pool, question), Direct(pool, question)
    table = direct.table.requires_grad_()
    direct.loss(table, 1.3).backward()
    assert table.grad is not None
    expected, rows = table.grad, torch.tensor(found.weights, dtype=torch.float64)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_same_question_has_the_same_bits(pool: Pool) -> None:
    question = question_of(pool)
    assert slope(pool, question) == slope(pool, question)
    assert slope(pool, question) != slope(pool, question_of(pool, epoch=2))


def test_the_warm_model_is_left_clean_and_frozen_parameters_stay_frozen(pool: Pool) -> None:
    model = pool.worker.model(pool.cohort.model)
    first = next(model.parameters()).requires_grad_(False)
    try:
        slope(pool, question_of(pool))
        assert not first.requires_grad and pool.worker.loaded_checkpoint_id is None
        assert all(parameter.grad is None for parameter in model.parameters())
        assert sum(not parameter.requires_grad for parameter in model.parameters()) == 1
    finally:
        first.requires_grad_(True)


def test_batches_of_an_epoch_cover_the_split_once_in_an_order_of_its_own(pool: Pool) -> None:
    batches = [batch_of(question_of(pool, batch=i), 3, 150).tolist() for i in range(3)]
    assert [len(batch) for batch in batches] == [64, 64, 22]
    assert sorted(sum(batches, [])) == list(range(150))
    assert batches != [batch_of(question_of(pool, batch=i), 4, 150).tolist() for i in range(3)]
    with pytest.raises(ValueError, match="batch 3 of 64 begins beyond 150 images"):
        batch_of(question_of(pool, batch=3), 3, 150)


def test_tensors_of_no_component_are_left_out(pool: Pool) -> None:
    everywhere, question = slope(pool, question_of(pool)), question_of(pool)
    fewer = slope(pool, question.model_copy(update={"components": question.components[1:]}))
    assert fewer.weights == everywhere.weights[1:]
