"""The averaging kernel against its definition, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.errors import UserError
from workers.merging.blend import BLEND_BLOCK, blend
from workers.types import Component, Mix, component_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "stem.weight": torch.randn(5, 3, 2, 2, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
        "head.bias": torch.randn(37, generator=generator).to(dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "bn.num_batches_tracked": torch.tensor(seed + 10),
    }


def defined(mix: Mix, sources: dict[str, dict[str, Tensor]], key: str) -> Tensor:
    """The formula of the design, on whole tensors."""
    live = [(name, weight) for name, weight in mix.weights if weight]
    total = sources[live[0][0]][key].double() * live[0][1]
    for name, weight in live[1:]:
        total = total + sources[name][key].double() * weight
    return (total / mix.divisor).to(sources[live[0][0]][key].dtype)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.floats(0.01, 3, allow_nan=False), min_size=2, max_size=6),
    divisor=st.floats(0.5, 8),
    dtype=st.sampled_from(DTYPES),
    block=st.integers(1, 80),
)
def test_a_blend_equals_its_definition_for_any_block_size(
    parts: list[float], divisor: float, dtype: torch.dtype, block: int
) -> None:
    sources = {str(i): weights(i, dtype) for i in range(len(parts))}
    mix = Mix(weights=tuple((str(i), part) for i, part in enumerate(parts)), divisor=divisor)
    blended = dict(blend(mix, sources, block))
    assert list(blended) == list(sources["0"])
    for key, tensor in blended.items():
        if tensor.is_floating_point():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, defined(mix, sources, key)), key


def test_neither_block_size_nor_threads_change_a_bit_of_a_large_tensor() -> None:
    sources = {
        str(i): {"w": torch.randn(200_003, generator=torch.Generator().manual_seed(i))}
        for i in range(3)
    }
    mix = Mix(weights=(("0", 0.3), ("1", 1.0), ("2", 1.7)), divisor=3.0)
    expected = defined(mix, sources, "w")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for block in (4_097, BLEND_BLOCK, 65_536, 300_000):
                assert torch.equal(dict(blend(mix, sources, block))["w"], expected)
    finally:
        torch.set_num_threads(threads)


@settings(deadline=None)
@given(weight=st.floats(0.1, 10), others=st.integers(0, 3))
def test_one_weight_equal_to_the_divisor_returns_the_tensors_themselves(
    weight: float, others: int
) -> None:
    sources = {str(i): weights(i) for i in range(1 + others)}
    zeros = tuple((str(i), 0.0) for i in range(1, 1 + others))
    for key, tensor in blend(Mix(weights=(*zeros, ("0", weight)), divisor=weight), sources):
        assert tensor is sources["0"][key]


@settings(deadline=None)
@given(order=st.permutations(list("01234")))
def test_the_order_of_a_uniform_mix_matters_at_most_in_the_last_bit(order: list[str]) -> None:
    """Sums in float64 differ by about 1e-16, so float32 results differ by one rounding at most."""
    sources = {name: weights(int(name)) for name in "01234"}
    one, other = (
        dict(blend(Mix.mean(list("01234")), sources)),
        dict(blend(Mix.mean(order), sources)),
    )
    for key, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, other[key], rtol=2e-7, atol=1e-12)


def test_counters_come_from_the_heaviest_member_and_the_first_among_equals() -> None:
    sources = {str(i): weights(i) for i in range(3)}
    equal = dict(blend(Mix.mean(["1", "0", "2"]), sources))
    uneven = dict(blend(Mix(weights=(("1", 1), ("2", 2), ("0", 2)), divisor=5), sources))
    assert equal["bn.num_batches_tracked"] == 11
    assert uneven["bn.num_batches_tracked"] == 12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("names", [["0"], ["1", "0"]])
def test_a_value_that_is_not_finite_is_refused_by_name(bad: float, names: list[str]) -> None:
    sources = {str(i): weights(i) for i in range(2)}
    sources["0"]["head.bias"][7] = bad
    with pytest.raises(UserError, match=r"ingredient 0: 1 of 37 values of tensor 'head.bias'"):
        dict(blend(Mix.mean(names), sources))


def test_infinities_of_opposite_sign_do_not_hide_each_other() -> None:
    sources = {str(i): weights(i) for i in range(2)}
    sources["0"]["scale"].fill_(float("inf"))
    sources["1"]["scale"].fill_(float("-inf"))
    with pytest.raises(UserError, match="ingredient 0: 1 of 1 values of tensor 'scale'"):
        dict(blend(Mix.mean(["0", "1"]), sources))


def test_a_missing_tensor_and_another_shape_or_dtype_are_refused_by_name() -> None:
    sources = {str(i): weights(i) for i in range(2)}
    mix = Mix.mean(["0", "1"])
    short = {key: tensor for key, tensor in sources["1"].items() if key != "scale"}
    with pytest.raises(UserError, match="ingredient 1 lacks tensor 'scale'"):
        dict(blend(mix, {**sources, "1": short}))
    wide = {**sources["1"], "head.bias": torch.zeros(38)}
    with pytest.raises(UserError, match=r"ingredient 1: tensor 'head.bias' .*\[38\].*\[37\] in 0"):
        dict(blend(mix, {**sources, "1": wide}))
    half = {**sources["1"], "head.bias": torch.zeros(37).half()}
    with pytest.raises(UserError, match="torch.float16"):
        dict(blend(mix, {**sources, "1": half}))


def test_a_mix_without_weights_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="at least one checkpoint"):
        dict(blend(Mix(weights=(("0", 0.0),), divisor=1), {"0": weights(0)}))


# Components


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3), min_size=3, max_size=3),
        min_size=3,
        max_size=3,
    ),
    divisor=st.floats(0.5, 8),
    dtype=st.sampled_from(DTYPES),
    block=st.integers(1, 80),
)
def test_a_component_has_weights_of_its_own_negative_ones_too(
    rows: list[list[float]], divisor: float, dtype: torch.dtype, block: int
) -> None:
    sources = {str(i): weights(i, dtype) for i in range(3)}
    common, stem, bias = (tuple(row) for row in rows)
    mix = Mix(
        weights=tuple(zip("012", common, strict=True)),
        divisor=divisor,
        components=(
            Component(prefix="head.bias", weights=bias),
            Component(prefix="stem", weights=stem),
            Component(prefix="hea", weights=stem),
            Component(prefix="scal", weights=stem),
        ),
    )
    plain = {"stem.weight": stem, "head.bias": bias, "scale": common, "empty": common}
    blended = dict(blend(mix, sources, block))
    for key, row in plain.items():
        alone = Mix(weights=tuple(zip("012", row, strict=True)), divisor=divisor)
        assert torch.equal(blended[key], defined(alone, sources, key)), key


def test_the_longest_prefix_applies_and_prefixes_end_at_dots() -> None:
    prefixes = ["", "layer1", "layer1.0", "layer1.0.conv.weight", "layer"]
    assert component_of("layer1.0.conv.weight", prefixes) == "layer1.0.conv.weight"
    assert component_of("layer1.0.conv.bias", prefixes) == "layer1.0"
    assert component_of("layer1.10.conv.bias", prefixes) == "layer1"
    assert component_of("layer1", prefixes) == "layer1"
    assert component_of("layer10.0.conv.weight", prefixes) == ""
    assert component_of("layer10.0.conv.weight", prefixes[1:]) is None


def test_a_component_of_one_checkpoint_returns_its_tensors_themselves() -> None:
    sources = {str(i): weights(i) for i in range(2)}
    only = Component(prefix="stem", weights=(0.0, 2.0))
    blended = dict(blend(Mix.mean(["0", "1"]).model_copy(update={"components": (only,)}), sources))
    assert blended["stem.weight"] is sources["1"]["stem.weight"]
    assert torch.equal(blended["scale"], defined(Mix.mean(["0", "1"]), sources, "scale"))


def test_a_checkpoint_may_weigh_something_in_one_component_only() -> None:
    sources = {str(i): weights(i) for i in range(2)}
    both = Component(prefix="head", weights=(1.0, 3.0))
    mix = Mix(weights=(("0", 4.0), ("1", 0.0)), divisor=4, components=(both,))
    assert mix.names == ("0", "1") and mix.single is None
    blended = dict(blend(mix, sources))
    assert blended["scale"] is sources["0"]["scale"]
    expected = (sources["0"]["head.bias"].double() + 3 * sources["1"]["head.bias"].double()) / 4
    assert torch.equal(blended["head.bias"], expected.float())
    assert blended["bn.num_batches_tracked"] == 10


def test_a_tensor_without_any_weight_is_our_mistake() -> None:
    none = Component(prefix="head", weights=(0.0,))
    with pytest.raises(ValueError, match="no checkpoint of the mix has a weight for .*head.bias"):
        dict(blend(Mix.mean(["0"]).model_copy(update={"components": (none,)}), {"0": weights(0)}))
