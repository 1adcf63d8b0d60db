"""How source tensors become a variant's, and back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runner.mapping import Bound, Feeds, Tensor
from agent.runtimes import RuntimeFailure, TensorSpec
from edgefarm.mapping import decoder, holds
from edgefarm.model import FailureKind, Io, TensorMap


class FakeModel:
    """Gives its inputs back as its outputs, and remembers them."""

    def __init__(self, inputs: list[TensorSpec], outputs: list[str] | None = None) -> None:
        self.inputs = tuple(inputs)
        names = outputs or [f"out_{spec.name}" for spec in inputs]
        self.outputs = tuple(TensorSpec(name, spec.dtype, spec.shape) for name, spec in zip(names, inputs))
        self.fed: Feeds = {}
        self.chosen: dict[str, str] = {}

    def run(self, feeds: Feeds) -> list[Tensor]:
        self.fed = feeds
        return [feeds[spec.name] for spec in self.inputs]

    def reset(self) -> None:
        pass

    def placement(self, feeds: Feeds) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def _x(*shape: int | None, dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _io(*inputs: TensorMap, outputs: tuple[TensorMap, ...] = ()) -> Io:
    return Io(inputs, outputs)


def test_without_io_nothing_lies_between() -> None:
    model = FakeModel([_x(None, 3)])
    bound = Bound(model, None)
    assert bound.run == model.run
    assert bound.outputs == ("out_x",)


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_a_permutation_is_undone_on_the_way_out(permutation: list[int], shape: list[int]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    model = FakeModel([_x(None, None, None, None, name="serving_x:0")], ["y:0"])
    mapping = tuple(permutation)
    bound = Bound(model, _io(TensorMap("x", "serving_x:0", mapping), outputs=(TensorMap("y", "y:0", mapping),)))
    (result,) = bound.run(bound.feeds({"x": [x]})[0])
    assert np.array_equal(model.fed["serving_x:0"], x.transpose(mapping))
    assert model.fed["serving_x:0"].flags.c_contiguous
    assert np.array_equal(result, x)
    assert bound.outputs == ("y",)


_FINITE = st.floats(-1e4, 1e4, width=32)


@given(st.lists(_FINITE, min_size=1, max_size=8), st.floats(1e-3, 10), st.integers(-128, 127))
def test_quantised_values_come_back_within_half_a_step(values: list[float], scale: float, zero: int) -> None:
    x = np.array([values], dtype=np.float32)
    model = FakeModel([_x(1, None, dtype="int8")], ["q"])
    bound = Bound(model, _io(TensorMap("x", "x", (), scale, zero), outputs=(TensorMap("y", "q", (), scale, zero),)))
    (back,) = bound.run(bound.feeds({"x": [x]})[0])
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    assert model.fed["x"].dtype == np.int8
    assert back.dtype == np.float32
    expected = np.clip(x.astype(np.float64), low, high)  # outside the range it saturates
    assert np.all(np.abs(back - expected) <= scale / 2 * 1.001 + 1e-4 * np.abs(expected))


def test_halves_round_to_even_and_the_ends_saturate() -> None:
    model = FakeModel([_x(1, 6, dtype="uint8")])
    bound = Bound(model, _io(TensorMap("x", "x", (), 1.0, 10)))
    bound.run({"x": np.array([[0.5, 1.5, 2.5, -0.5, 1e6, -1e6]], dtype=np.float32)})
    assert model.fed["x"].tolist() == [[10, 12, 12, 10, 255, 0]]


def test_outputs_follow_the_mapping_in_order_and_may_be_fewer() -> None:
    model = FakeModel([_x(1, 2, name="a"), _x(1, 3, name="b")], ["p", "q"])
    bound = Bound(model, _io(TensorMap("u", "a"), TensorMap("v", "b"), outputs=(TensorMap("second", "q"), TensorMap("first", "p"))))
    feeds = bound.feeds({"u": [np.zeros((1, 2), np.float32)], "v": [np.ones((1, 3), np.float32)], "label": [np.array(3)]})
    second, first = bound.run(feeds[0])
    assert (second.shape, first.shape) == ((1, 3), (1, 2))
    assert bound.outputs == ("second", "first")


def _shard(*shape: int, dtype: Any = np.float32, n: int = 1) -> dict[str, list[Tensor]]:
    return {"x": [np.zeros(shape, dtype) for _ in range(n)]}


_QUANTISED = TensorMap("x", "x", (), 0.5, 0)


@pytest.mark.parametrize(
    ("spec", "io", "shard", "said"),
    [
        (_x(1, 3), None, {"z": [np.zeros((1, 3), np.float32)]}, "lack 'x'; they hold 'z'"),
        (_x(1, 3), None, _shard(1, 3, dtype=np.float64), "'x' is float64, but the model takes float32"),
        (_x(1, 3, dtype="int64"), None, _shard(1, 3, dtype=np.int32), "'x' is int32, but the model takes int64"),
        (_x(1, 3), None, _shard(1, 4), r"shape \[1, 4\], but the model takes \[1, 3\]"),
        (_x(None, 3), None, _shard(3), r"shape \[3\], but the model takes \[\?, 3\]"),
        (_x(1, 3), _io(TensorMap("x", "x", (0, 2, 1))), _shard(1, 3), "2 axes, which the permutation"),
        (_x(1, 3, dtype="int8"), _io(_QUANTISED), _shard(1, 3, dtype=np.int8), "quantising it needs floating point"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_and_never_cast(spec: TensorSpec, io: Io | None, shard: Any, said: str) -> None:
    with pytest.raises(RuntimeFailure, match=said) as caught:
        Bound(FakeModel([spec]), io).feeds(shard)
    assert caught.value.kind is FailureKind.IO_CHANGED


@pytest.mark.parametrize(
    ("dtype", "other", "values", "fit"),
    [
        ("int64", "int32", [0, -(2**31), 2**31 - 1], True),
        ("int64", "int32", [0, 2**31], False),
        ("int32", "int64", [-5, 7], True),
        ("uint8", "int8", [127, 128], False),
        ("uint8", "float32", [0, 255], True),
        ("int64", "float32", [2**24, 2**24 + 1], False),
        ("bool", "uint8", [True, False], True),
        ("float32", "float16", [0.1, 65504.0], True),
        ("float32", "float16", [0.1, 1e6], False),
        ("float64", "float32", [np.inf, 0.1], True),
    ],
)
def test_numbers_in_another_type(dtype: str, other: str, values: list[Any], fit: bool) -> None:
    """They go in and come out as the source's, or are refused before the model sees them."""
    model = FakeModel([_x(1, None, dtype=other, name="v")], ["w"])
    bound = Bound(model, _io(TensorMap("x", "v", dtype=dtype), outputs=(TensorMap("y", "w", dtype=dtype),)))
    x = np.array([values], dtype)
    if not fit:
        with pytest.raises(RuntimeFailure, match=f"'x' holds .*, but the variant takes {other}, which does not hold") as caught:
            bound.feeds({"x": [x]})
        assert caught.value.kind is FailureKind.IO_CHANGED
        return
    (back,) = bound.run(bound.feeds({"x": [x]})[0])
    assert (model.fed["v"].dtype, back.dtype) == (other, dtype)
    np.testing.assert_allclose(back, x, rtol=1e-3)
    with pytest.raises(RuntimeFailure, match=f"the model takes {dtype}"):
        bound.feeds({"x": [x.astype(other)]})


@pytest.mark.parametrize(
    ("dtype", "other", "held"),
    [
        ("int64", "int32", True),
        ("float32", "float16", True),
        ("bool", "float32", True),
        ("float32", "int8", False),
        ("str", "int64", False),
        ("int64", "str", False),
        ("sequence", "float32", False),
        ("float32", "bfloat999", False),
    ],
)
def test_which_types_may_hold_others(dtype: str, other: str, held: bool) -> None:
    assert holds(dtype, other) is held


def test_whole_numbers_that_come_as_floats_are_rounded_not_cut() -> None:
    assert decoder(TensorMap("n", "n", dtype="int64"))(np.array([2.9999998, -1.0000001], np.float32)).tolist() == [3, -1]


def test_inputs_of_different_number_are_refused() -> None:
    bound = Bound(FakeModel([_x(1, 3), _x(1, 3, name="y")]), None)
    with pytest.raises(RuntimeFailure, match="number of samples"):
        bound.feeds({"x": [np.zeros((1, 3), np.float32)], "y": [np.zeros((1, 3), np.float32)] * 2})


@pytest.mark.parametrize(
    ("io", "said"),
    [
        (_io(TensorMap("x", "other")), "input 'other', which the variant does not have; it has x"),
        (_io(), "input 'x' of the variant without a source"),
        (_io(TensorMap("x", "x"), outputs=(TensorMap("y", "gone"),)), "output 'gone'"),
        (_io(_QUANTISED), "quantises input 'x', which is float32"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(io: Io, said: str) -> None:
    with pytest.raises(RuntimeFailure, match=said) as caught:
        Bound(FakeModel([_x(1, 3)]), io)
    assert caught.value.kind is FailureKind.IO_CHANGED


def test_samples_of_different_shapes_are_fed_as_they_are() -> None:
    bound = Bound(FakeModel([_x(1, None)]), None)
    shard = {"x": [np.zeros((1, n), np.float32) for n in (2, 5, 3)]}
    assert [feeds["x"].shape[1] for feeds in bound.feeds(shard)] == [2, 5, 3]


def test_strings_are_a_type() -> None:
    bound = Bound(FakeModel([_x(1, dtype="str")]), None)
    assert len(bound.feeds({"x": [np.array(["word"])]})) == 1


def test_axes_all_combinations_for_images() -> None:
    x = np.zeros((1, 3, 5, 7), np.float32)
    for permutation in itertools.permutations(range(4)):
        shape = tuple(x.shape[i] for i in permutation)
        assert Bound(FakeModel([_x(*shape)]), _io(TensorMap("x", "x", permutation))).feeds({"x": [x]})
