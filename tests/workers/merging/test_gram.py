"""Inner products of displacements, against whole tensors in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.small_soups import RESNET, Pool, make_pool
from workers.errors import UserError
from workers.merging import gram as module
from workers.merging.gram import grams_of, measure_gram_matrices
from workers.storage.checkpoints import open_weights
from workers.types import GeometryOrder, GramMatrices, GramResult, Measured


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), RESNET)


def measured(pool: Pool) -> Measured:
    question = GramMatrices(names=pool.names, base=pool.base.name)
    places = (*pool.members, pool.base)
    order = GeometryOrder(cohort=pool.cohort, question=question, ingredients=places)
    (event,) = measure_gram_matrices(order, 0, pool.worker)
    assert isinstance(event, Measured) and event.key == question.key and event.samples == 0
    return event


def test_every_tensor_of_weights_has_its_gram_and_statistics_have_none(pool: Pool) -> None:
    answer = measured(pool).answer
    assert isinstance(answer, GramResult)
    model = pool.worker.model(pool.cohort.model)
    assert set(answer.tensors) == set(filter(_is_weight, model.state_dict()))
    base = open_weights(pool.worker.store, pool.base)
    members = [open_weights(pool.worker.store, member) for member in pool.members]
    for key, rows in answer.tensors.items():
        moved = torch.stack([(m[key].double() - base[key].double()).reshape(-1) for m in members])
        expected = [(moved[i] * moved[j]).sum() for i in range(3) for j in range(i, 3)]
        whole = torch.tensor(rows, dtype=torch.float64)
        torch.testing.assert_close(whole, torch.stack(expected), rtol=1e-11, atol=1e-20)


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias")


@settings(deadline=None, max_examples=30)
@given(num=st.integers(1, 4), size=st.integers(0, 40), block=st.integers(4, 60))
def test_blocks_change_nothing_but_rounding(num: int, size: int, block: int) -> None:
    generator = torch.Generator().manual_seed(size)
    sources = {str(i): {"w": torch.randn(size, generator=generator)} for i in range(num + 1)}
    names = tuple(str(i) for i in range(1, num + 1))
    kept = module.GRAM_BLOCK
    try:
        module.GRAM_BLOCK = block
        found = grams_of(sources, names, "0").tensors["w"]
    finally:
        module.GRAM_BLOCK = kept
    assert found == pytest.approx(grams_of(sources, names, "0").tensors["w"], rel=1e-12)


def test_tensors_equal_to_the_base_have_products_of_zero_and_integers_have_none() -> None:
    base = {"w": torch.ones(3), "steps": torch.tensor(3)}
    assert grams_of({"b": base, "a": base}, ("a",), "b") == GramResult(tensors={"w": (0.0,)})


def test_a_diverged_or_foreign_ingredient_is_refused_by_name() -> None:
    base = {"w": torch.ones(3)}
    with pytest.raises(UserError, match="ingredient a: 1 of 3 values of tensor 'w' are not finite"):
        grams_of({"b": base, "a": {"w": torch.tensor([1.0, torch.nan, 0])}}, ("a",), "b")
    with pytest.raises(UserError, match="ingredient a lacks tensor 'w'"):
        grams_of({"b": base, "a": {}}, ("a",), "b")
