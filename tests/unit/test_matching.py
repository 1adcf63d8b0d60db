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
from optimizer.matching import match
from optimizer.passes import PassFailure
from optimizer.signature import Signature, TensorSpec
from optimizer.ways import layouts

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


def test_samples_that_a_variant_does_not_hold() -> None:
    io, inputs = Io((TensorMap("t", "u", dtype="int64"),), ()), (TensorSpec("u", "int32", (1, 2)),)
    assert feeds(Dataset({"t": np.array([[[1, 2**31 - 1]]])}), io, inputs).inputs["u"].dtype == np.int32
    with pytest.raises(PassFailure, match="input 't' holds 2147483648, but 'u' is int32, which does not hold that number") as caught:
        feeds(Dataset({"t": np.array([[[1, 2]], [[3, 2**31]]])}), io, inputs)
    assert caught.value.kind is FailureKind.IO_CHANGED


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


WIDE = {f"{side}{i}": (1, 6) for i in range(4) for side in "ab"}


def wide(prefix: str, order: int = 1) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda given_: {"y": sum((i + 1) * given_[f"{prefix}{name}"] for i, name in enumerate(list(WIDE)[::order]))}


def test_many_inputs_of_one_shape_are_known_by_name_or_refused_at_once() -> None:
    """Their orders are more than can be tried."""
    source, data = signature(WIDE, {"y": (1, 6)}), samples(**WIDE)
    named = signature({f"serving_default_{n}": s for n, s in reversed(WIDE.items())}, {"y": (1, 6)})
    io = match(source, wide(""), named, wide("serving_default_"), data, 0.05)
    assert [(m.source, m.name) for m in io.inputs] == [(n, f"serving_default_{n}") for n in WIDE]
    with pytest.raises(PassFailure, match="not the same network"):  # the names are right, the network is not
        match(source, wide(""), named, wide("serving_default_", -1), data, 0.05)
    nameless = signature({f"arg_{n}": s for n, s in WIDE.items()}, {"y": (1, 6)})
    with pytest.raises(PassFailure, match="in too many ways; export it with the source's input names"):
        match(source, wide(""), nameless, wide("arg_"), data, 0.05)


def test_inputs_that_cannot_all_be_fed_are_refused_at_once() -> None:
    """One of twelve is too small: twelve factorial dead ends."""
    source = signature({f"i{n}": (1, 6) for n in range(12)}, {"y": (1, 6)})
    other = signature({f"o{n}": (1, 6) if n else (1, 5) for n in range(12)}, {"y": (1, 6)})
    data = samples(**{f"i{n}": (1, 6) for n in range(12)})
    with pytest.raises(PassFailure, match=r"in too many ways|don't fit"):
        match(source, lambda g: {"y": g["i0"]}, other, lambda g: {"y": g["o1"]}, data, 0.05)


def test_many_layouts_of_named_inputs_leave_those_of_converters() -> None:
    """Three cubes: 216 ways to turn them."""
    cubes = signature(dict.fromkeys("abc", (4, 4, 4, 4)), {"y": (4, 4, 4, 4)})
    places = np.random.default_rng(4).normal(size=(4, 4, 4, 4)).astype(np.float32)
    io = match(
        cubes,
        lambda g: {"y": places * (g["a"] + 2 * g["b"] - g["c"])},
        cubes,
        lambda g: {"y": places * (g["a"] + 2 * g["b"] - g["c"]).transpose(0, 3, 1, 2)},
        samples(a=(4, 4, 4, 4), b=(4, 4, 4, 4), c=(4, 4, 4, 4)),
        0.05,
    )
    assert {m.permutation for m in io.inputs} == {LAST}


@pytest.mark.parametrize("off", [0, 1])
def test_indices_are_equal_or_not(off: int) -> None:
    """Of a thousand classes two neighbours are near as numbers."""
    source, other = signature({"a": (1, 6)}, {"best": (1,)}), signature({"a": (1, 6)}, {"label": (1,)})

    def best(shift: int, dtype: str, name: str) -> Callable[[Any], Any]:
        return lambda g: {name: (500 + g["a"].argmax(axis=1) + shift).astype(dtype)}

    data = Dataset({"a": np.random.default_rng(3).normal(size=(8, 1, 6)).astype(np.float32)})
    arguments = (source, best(0, "int64", "best"), other, best(off, "int32", "label"), data, 0.05)
    if off:
        with pytest.raises(PassFailure, match=r"'label' is off by 0\.875"):
            match(*arguments)
        return
    (mapping,) = match(*arguments).outputs
    assert mapping == TensorMap("best", "label", dtype="int64")
    assert decoder(mapping)(np.array([3], np.int32)).dtype == np.int64


def test_the_nearer_of_two_alike_outputs_is_taken() -> None:
    """Two heads that nearly agree, in a quantised file that lists them the other way round."""
    two = signature({"a": (1, 6)}, {"one": (1, 6), "two": (1, 6)})
    other = signature({"a": (1, 6)}, {"o1": (1, 6), "o2": (1, 6)})
    io = match(
        two,
        lambda g: {"one": g["a"], "two": 1.05 * g["a"]},
        other,
        lambda g: {"o1": 1.07 * g["a"], "o2": 0.96 * g["a"]},
        samples(a=(1, 6)),
        0.3,
    )
    assert [(m.source, m.name) for m in io.outputs] == [("one", "o2"), ("two", "o1")]


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
