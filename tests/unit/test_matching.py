"""How tensors of another format are found to be the source's, and mappings that are chained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgefarm.mapping import decoder, encoder
from edgefarm.model import FailureKind, Io, TensorMap
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.io_maps import as_json, by_order, chain, feeds, from_json, is_plain, through
from optimizer.matching import layouts, match
from optimizer.passes import PassFailure
from optimizer.signature import Signature, TensorSpec

LAST = (0, 2, 3, 1)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def signature(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Signature:
    """name -> shape, or a whole TensorSpec."""
    sides = ([v if isinstance(v, TensorSpec) else TensorSpec(k, "float32", tuple(v)) for k, v in s.items()] for s in (inputs, outputs))
    return Signature(*(tuple(side) for side in sides), 1, "tflite")


def samples(**shapes_: tuple[int, ...]) -> Dataset:
    random = np.random.default_rng(5)
    return Dataset({name: random.normal(size=(4, *shape)).astype(np.float32) for name, shape in shapes_.items()})


def network(weights: Any) -> Callable[[Any], Any]:
    """Channels first: [1, C, H, W] -> [1, K]."""
    return lambda x: np.tanh(x.reshape(1, -1) @ weights)


W = np.random.default_rng(1).normal(size=(3 * 4 * 4, 5)).astype(np.float32)
SOURCE = signature({"x": (None, 3, 4, 4)}, {"y": (None, 5)})


def run_source(given_: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": network(W)(given_["x"])}


@given(shape=shapes, data=st.data())
def test_every_layout_is_found(shape: list[int], data: st.DataObject) -> None:
    permutation = tuple(data.draw(st.permutations(range(len(shape)))))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    turned = x.transpose(permutation)
    found = [x.transpose(p) if p else x for p, _ in layouts(x.shape, turned.shape)]
    assert all(f.shape == turned.shape for f in found)
    assert any(np.array_equal(f, turned) for f in found)
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(found, 2)) or x.size == 1


def test_converters_layouts_come_first() -> None:
    assert list(layouts((1, 3, 4, 4), (1, 4, 4, 3))) == [(LAST, True), ((0, 3, 2, 1), False)]
    assert next(layouts((1, 4, 4, 3), (None, 3, 4, 4))) == ((0, 3, 1, 2), True)
    assert next(layouts((1, 4, 4, 4), (1, 4, 4, 4))) == ((), True)
    assert list(layouts((1, 3), (1, 3, 1))) == []


@given(shape=shapes, data=st.data())
def test_a_chain_is_one_after_the_other(shape: list[int], data: st.DataObject) -> None:
    draw = st.one_of(st.just(()), st.permutations(range(len(shape))).map(tuple))
    first, second = (TensorMap(a, b, tuple(data.draw(draw))) for a, b in (("s", "p"), ("p", "c")))
    if data.draw(st.booleans()):
        second = TensorMap("p", "c", second.permutation, 0.1, 3)
    x = np.random.default_rng(0).uniform(-9, 9, shape).astype(np.float32)
    whole = chain(Io((first,), (first,)), Io((second,), (second,)))
    assert whole is not None
    dtype = "int8" if second.scale else "float32"
    step_by_step = encoder(second, dtype)(encoder(first, "float32")(x))
    assert np.array_equal(encoder(whole.inputs[0], dtype)(x), step_by_step)
    back = decoder(first)(decoder(second)(step_by_step))
    assert np.array_equal(decoder(whole.outputs[0])(step_by_step), back)
    assert from_json(as_json(whole)) == whole


def test_a_chain_leaves_out_what_the_source_does_not_have() -> None:
    parent = Io((TensorMap("x", "a"),), (TensorMap("y", "b"),))
    child = Io((TensorMap("a", "A"),), (TensorMap("extra", "E"), TensorMap("b", "B")))
    assert chain(parent, child) == Io((TensorMap("x", "A"),), (TensorMap("y", "B"),))
    assert chain(None, child) == child
    assert chain(parent, None) == parent
    with pytest.raises(ValueError, match="quantised twice"):
        chain(Io((TensorMap("x", "a", (), 1.0, 0),), ()), Io((TensorMap("a", "A", (), 1.0, 0),), ()))


def test_names_by_order() -> None:
    after = signature({"X": (None, 3, 4, 4)}, {"y_dequant": (None, 5)})
    assert by_order(SOURCE, after) == Io((TensorMap("x", "X"),), (TensorMap("y", "y_dequant"),))
    assert by_order(SOURCE, SOURCE) is None
    with pytest.raises(PassFailure):
        by_order(SOURCE, signature({}, {"y": (1, 5)}))


def test_samples_and_functions_through_a_mapping() -> None:
    io = Io((TensorMap("x", "q", LAST, 0.5, -3),), (TensorMap("y", "z"),))
    other = signature({"q": TensorSpec("q", "int8", (1, 4, 4, 3))}, {"z": (1, 5)})
    data = samples(x=(1, 3, 4, 4))
    mapped = feeds(data, io, other.inputs)
    assert mapped.inputs["q"].shape == (4, 1, 4, 4, 3)
    assert mapped.inputs["q"].dtype == np.int8
    run = through(lambda given_: {"z": given_["q"].sum(keepdims=True)}, io, other)
    assert run(data.feeds(2))["y"].item() == mapped.inputs["q"][2].sum()
    assert not is_plain(io)
    assert is_plain(Io((TensorMap("x", "x"),), (TensorMap("y", "y"),)))


def other_of(weights: Any, *, turned: bool = False, into: str = "in", out: str = "out") -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def run(given_: Mapping[str, Any]) -> dict[str, Any]:
        x = given_[into].astype(np.float32)
        return {out: network(weights)(x.transpose(0, 3, 2, 1) if turned else x.transpose(0, 3, 1, 2))}

    return run


NHWC = signature({"in": (1, 4, 4, 3)}, {"out": (1, 5)})


@pytest.mark.parametrize(("turned", "permutation"), [(False, LAST), (True, (0, 3, 2, 1))])
def test_the_layout_is_proved(turned: bool, permutation: tuple[int, ...]) -> None:
    io = match(SOURCE, run_source, NHWC, other_of(W, turned=turned), samples(x=(1, 3, 4, 4)), 0.05)
    assert io == Io((TensorMap("x", "in", permutation),), (TensorMap("y", "out"),))


def test_quantised_ends() -> None:
    spec_in, spec_out = TensorSpec("in", "int8", (1, 4, 4, 3), True, 0.05, 2), TensorSpec("out", "uint8", (1, 5), True, 2 / 255, 127)

    def run(given_: Mapping[str, Any]) -> dict[str, Any]:
        x = (given_["in"].astype(np.float32) - 2) * np.float32(0.05)
        y = network(W)(x.transpose(0, 3, 1, 2))
        return {"out": np.clip(np.rint(y / (2 / 255)) + 127, 0, 255).astype(np.uint8)}

    io = match(SOURCE, run_source, signature({"in": spec_in}, {"out": spec_out}), run, samples(x=(1, 3, 4, 4)), 0.3)
    assert io == Io((TensorMap("x", "in", LAST, 0.05, 2),), (TensorMap("y", "out", (), 2 / 255, 127),))


def test_another_network() -> None:
    with pytest.raises(PassFailure, match=r"not the same network: fed with 'x' as 'in' .* its output 'out' is off by [\d.]+ ") as caught:
        match(SOURCE, run_source, NHWC, other_of(W + 0.5), samples(x=(1, 3, 4, 4)), 0.05)
    assert caught.value.kind is FailureKind.NUMERIC


def test_what_does_not_fit() -> None:
    data = samples(x=(1, 3, 4, 4))
    for other, message in (
        (signature({"in": (1, 4, 4, 1)}, {"out": (1, 5)}), r"input 'x' of the source, fed as float32\[1, 3, 4, 4\], fits none of 'in' "),
        (signature({"in": TensorSpec("in", "int8", (1, 4, 4, 3))}, {"out": (1, 5)}), "fits none of 'in' int8"),
        (signature({"a": (1, 4, 4, 3), "b": (1,)}, {"out": (1, 5)}), "it has 2 inputs, the source has 1 input"),
    ):
        with pytest.raises(PassFailure, match=message):
            match(SOURCE, run_source, other, other_of(W), data, 0.05)
    with pytest.raises(PassFailure, match=r"output 'y' of the source, float32\[1, 5\], fits none of 'out'"):
        match(SOURCE, run_source, NHWC, lambda g: {"out": np.zeros((1, 6), np.float32)}, data, 0.05)


PAIR = signature({"a": (1, 6), "b": (1, 6)}, {"y": (1, 6)})


def combine(left: str, right: str, by: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda given_: {"y": given_[left] + by * given_[right]}


@pytest.mark.parametrize("swapped", [False, True])
def test_inputs_of_one_shape_are_told_apart_by_running(swapped: bool) -> None:
    other = signature({"p": (1, 6), "q": (1, 6)}, {"y": (1, 6)})
    left, right = ("q", "p") if swapped else ("p", "q")
    io = match(PAIR, combine("a", "b", 2.0), other, combine(left, right, 2.0), samples(a=(1, 6), b=(1, 6)), 0.05)
    assert [(m.source, m.name) for m in io.inputs] == [("a", left), ("b", right)]


def test_ambiguous_inputs_are_refused_unless_names_decide() -> None:
    data, run = samples(a=(1, 6), b=(1, 6)), combine("a", "b", 1.0)
    with pytest.raises(PassFailure, match="input 'a' may be fed as 'p' and as 'q', and both give the source's outputs"):
        match(PAIR, run, signature({"p": (1, 6), "q": (1, 6)}, {"y": (1, 6)}), combine("p", "q", 1.0), data, 0.05)
    named = signature({"serving_default_b:0": (1, 6), "serving_default_a:0": (1, 6)}, {"y": (1, 6)})
    io = match(PAIR, run, named, combine("serving_default_a:0", "serving_default_b:0", 1.0), data, 0.05)
    assert [m.name for m in io.inputs] == ["serving_default_a:0", "serving_default_b:0"]


def test_outputs_in_another_order() -> None:
    two = signature({"a": (1, 6)}, {"one": (1, 6), "two": (1, 6)})
    other = signature({"a": (1, 6)}, {"o1": (1, 6), "o2": (1, 6)})
    io = match(
        two, lambda g: {"one": g["a"], "two": -g["a"]}, other, lambda g: {"o1": -g["a"], "o2": g["a"]}, samples(a=(1, 6)), 0.05
    )  # fmt: skip
    assert [(m.source, m.name) for m in io.outputs] == [("one", "o2"), ("two", "o1")]


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), factor=st.floats(0, 2))
def test_drift_is_relative(values: list[float], factor: float) -> None:
    x = np.array(values, np.float32)
    assume(float(np.abs(x).max()) > 1)
    assert drift([x], [x]) == 0
    assert drift([x], [x * 0]) == pytest.approx(1, rel=1e-3)
    assert drift([x, x], [x * factor, x * factor]) == pytest.approx(abs(1 - factor), rel=1e-3, abs=1e-6)
    assert drift([x], [x * np.nan]) == np.inf
