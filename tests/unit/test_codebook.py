"""Codebooks: levels by hand, packing for every width, and weights that a graph computes from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from optimizer import checks, codebooks
from optimizer.codebook_graph import Lookup, tables
from optimizer.passes import Changed, Context, load_pass
from optimizer.source import inspect_model
from tests import models_optimizer as zoo

LAPLACE = np.random.default_rng(5).laplace(0, 0.1, 4000).astype(np.float32)


def run(content: Any, feeds: dict[str, Any], *, fold: bool = True) -> list[Any]:
    options = onnxruntime.SessionOptions()
    if not fold:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[Any] = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return found


def coded(model: Any, folder: Path, **parameters: Any) -> tuple[Changed, Path]:
    used = load_pass("codebook")
    source = zoo.save(model, folder / "m.onnx")
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    checked = used.parameters.model_validate(parameters)
    return used.run(source, folder / "out", checked, None, Context(folder / "scratch")), folder / "out" / "model.onnx"


@pytest.mark.parametrize(
    ("values", "count", "want"),
    [
        ([0, 1, 10, 11], 2, [0.5, 10.5]),
        ([11, 0, 10, 1, 10.5], 2, [0.5, 10.5]),
        ([-4, -4, -4, 0, 0.5, 9], 3, [-4, 0.25, 9]),
        ([[3, 1], [1, 3]], 4, [1, 3]),
        ([0, 0, 0], 2, [0]),
        ([*range(-50, 50), 1000], 2, [-0.5, 1000]),  # the one large weight is no part of a cluster of many
    ],
)
def test_centroids_by_hand(values: Any, count: int, want: list[float]) -> None:
    np.testing.assert_allclose(codebooks.kmeans_levels(values, count), want)


@pytest.mark.parametrize("count", [4, 16, 64])
def test_centroids_are_the_means_of_what_is_nearest_to_them(count: int) -> None:
    levels = codebooks.kmeans_levels(LAPLACE, count)
    codes = codebooks.nearest(LAPLACE, levels)
    means = [LAPLACE[codes == code].mean(dtype=np.float64) for code in range(levels.size)]
    np.testing.assert_allclose(levels, means, rtol=1e-9, atol=1e-12)
    assert levels.size > 0.9 * count
    even = np.linspace(LAPLACE.min(), LAPLACE.max(), count)
    assert codebooks.squared_error(LAPLACE, levels) < 0.7 * codebooks.squared_error(LAPLACE, even)


@pytest.mark.parametrize("bits", range(2, 9))
def test_logarithmic_levels_are_zero_and_powers_of_two(bits: int) -> None:
    levels = codebooks.logarithmic_levels(LAPLACE, bits)
    positive = levels[levels > 0]
    assert levels.size == 2**bits - 1
    np.testing.assert_array_equal(levels, np.concatenate((-positive[::-1], [0], positive)))
    mantissas, exponents = np.frexp(positive)
    assert set(mantissas) == {0.5}
    np.testing.assert_array_equal(np.diff(exponents), 1)
    assert np.log2(np.abs(LAPLACE).max()) - 4 < np.log2(positive[-1]) <= np.log2(np.abs(LAPLACE).max()) + 0.5


def test_logarithmic_levels_by_hand() -> None:
    np.testing.assert_array_equal(codebooks.logarithmic_levels([0.26, -0.5, 0.13, 0], 3), [-0.5, -0.25, -0.125, 0, 0.125, 0.25, 0.5])
    np.testing.assert_array_equal(codebooks.logarithmic_levels([0.0, 0.0], 2), [-1, 0, 1])


def test_nearest() -> None:
    levels = np.array([-1.0, 0.0, 4.0])
    np.testing.assert_array_equal(codebooks.nearest([[-9, -0.5], [1.9, 2.1]], levels), [[0, 0], [1, 2]])


CODES = st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70)))


@settings(deadline=None)
@given(CODES)
def test_packing_keeps_indices(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    total, shift = np.zeros(len(codes), np.int64), 0
    parts = codebooks.pack(codes, bits)
    assert sum(part.size for part in parts) == -(-len(codes) // 8) * bits  # no bit is lost between indices
    for width, part in zip(codebooks.widths(bits), parts):
        columns = np.unpackbits(part, bitorder="little").reshape(-1, width)
        total += (columns @ 2 ** np.arange(width) << shift)[: len(codes)]
        shift += width
    assert total.tolist() == codes


@settings(deadline=None, max_examples=60)
@given(CODES)
@example((3, [7, 0, 5]))
@example((7, [127] * 16))
def test_a_graph_looks_levels_up(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    levels = np.random.default_rng(0).normal(size=2**bits).astype(np.float32)
    lookup = Lookup("w", np.array(codes).reshape(1, -1, 1), levels, bits, None)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, len(codes), 1])
    graph = helper.make_graph(lookup.nodes, "g", [], [output], [*lookup.tensors, *tables(bits)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.checker.check_model(model, full_check=True)
    got = run(model.SerializeToString(), {}, fold=False)[0]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, levels[codes].reshape(1, -1, 1))


def few_values(*shape: int, axis: int) -> Any:
    """A weight whose channels have four values each, others in every channel."""
    random = np.random.default_rng(1)
    scale = np.arange(1, shape[axis] + 1, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (random.integers(-2, 2, shape) * scale / 64).astype(np.float32)


def operator(kind: str) -> tuple[Any, dict[str, Any]]:
    """A model of one operator with 12 channels, and what to feed it."""
    random = np.random.default_rng(2)
    rows, image = random.normal(size=(3, 250)).astype(np.float32), random.normal(size=(1, 30, 5, 5)).astype(np.float32)
    given = {
        "MatMul": (rows, few_values(250, 12, axis=1), ["x", "w"], {}),
        "Gemm": (rows, few_values(250, 12, axis=1), ["x", "w"], {}),
        "Gemm-transposed": (rows, few_values(12, 250, axis=0), ["x", "w"], {"transB": 1}),
        "Conv": (image, few_values(12, 30, 3, 3, axis=0), ["x", "w"], {}),
        "ConvTranspose": (image, few_values(30, 12, 3, 3, axis=1), ["x", "w"], {}),
        "Gather": (np.array([[3, 0], [11, 5]]), few_values(12, 250, axis=0), ["w", "x"], {}),
    }
    fed, weight, inputs, attributes = given[kind]
    node = helper.make_node(kind.split("-")[0], inputs, ["y"], **attributes)
    dtype = helper.np_dtype_to_tensor_dtype(fed.dtype)
    shapes = list(fed.shape), [None] * (fed.ndim + (kind == "Gather"))
    return zoo.build([node], {"x": (dtype, shapes[0])}, {"y": (TensorProto.FLOAT, shapes[1])}, {"w": weight}), {"x": fed}


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm-transposed", "Conv", "ConvTranspose", "Gather"])
def test_every_channel_has_its_codebook(tmp_path: Path, kind: str) -> None:
    model, feeds = operator(kind)
    changed, own = coded(model, tmp_path / "own", bits=2, channels=1)
    assert changed.detail.startswith(f"1 of 1 {kind.split('-')[0]} from 2-bit kmeans codebooks, ")
    _, shared = coded(model, tmp_path / "shared", bits=2)
    want = run(model.SerializeToString(), feeds)[0]
    np.testing.assert_allclose(run(str(own), feeds)[0], want, rtol=1e-5, atol=1e-5)
    assert np.abs(run(str(shared), feeds)[0] - want).max() > 0.01


def test_channels_that_do_not_divide(tmp_path: Path) -> None:
    model, feeds = operator("MatMul")
    _, output = coded(model, tmp_path, bits=4, channels=5)  # 5, 5 and 2 channels: 20 values at most
    want, got = run(model.SerializeToString(), feeds)[0], run(str(output), feeds)[0]
    np.testing.assert_allclose(got[:, 10:], want[:, 10:], rtol=1e-5, atol=1e-5)  # 2 channels have 8 values at most
    table = next(t for t in onnx.load(str(output)).graph.initializer if t.name == "w/codebook")
    assert list(table.dims) == [48]


def test_the_file_is_as_small_as_told(tmp_path: Path) -> None:
    model, _ = operator("Conv")
    changed, output = coded(model, tmp_path, bits=4)
    sizes = [(tmp_path / "m.onnx").stat().st_size, output.stat().st_size]
    assert f", {sizes[0]:,} -> {sizes[1]:,} bytes" in changed.detail
    assert sizes[1] < 12 * 30 * 9 * 4 / 8 + 2000
    checks.check(tmp_path / "m.onnx", output, load_pass("codebook"), None)


def test_onnxruntime_folds_it_into_a_float_weight(tmp_path: Path) -> None:
    """So inference costs what the float model's does."""
    model, _ = operator("Conv")
    _, output = coded(model, tmp_path, bits=2, channels=1)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    folded = onnx.load(str(tmp_path / "folded.onnx"))
    assert [n.op_type for n in folded.graph.node] == ["Conv"]
    want = few_values(12, 30, 3, 3, axis=0)
    np.testing.assert_array_equal(numpy_helper.to_array(folded.graph.initializer[0]), want)


def test_what_gains_little_is_left(tmp_path: Path) -> None:
    changed, output = coded(zoo.text_net(), tmp_path, bits=8)
    assert changed.detail.startswith("no weight taken, ")
    assert changed.detail.endswith("; left: 3 too small: a codebook saves less than half")
    with pytest.raises(checks.Unchanged):
        checks.check(tmp_path / "m.onnx", output, load_pass("codebook"), None)


def test_products_of_activations_are_told(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "a"], ["y"])]
    sides = {"x": (TensorProto.FLOAT, [64, 64])}, {"y": (TensorProto.FLOAT, [64, 64])}
    model = zoo.build(nodes, *sides, {"w": LAPLACE[:4096].reshape(-1, 50)[:64].repeat(2, axis=1)[:, :64]})
    changed, _ = coded(model, tmp_path, bits=4)
    assert changed.detail.startswith("1 of 2 MatMul from ")
    assert changed.detail.endswith("left: 1 without a stored weight")


def test_half_precision_stays_half(tmp_path: Path) -> None:
    weight = LAPLACE[:2000].reshape(50, 40).astype(np.float16)
    sides = {"x": (TensorProto.FLOAT16, [1, 50])}, {"y": (TensorProto.FLOAT16, [1, 40])}
    _, output = coded(zoo.build([helper.make_node("MatMul", ["x", "w"], ["y"])], *sides, {"w": weight}), tmp_path, bits=2)
    assert inspect_model(output).weight_dtypes["float16"] == 1
    assert run(str(output), {"x": np.ones((1, 50), np.float16)})[0].dtype == np.float16


@pytest.mark.parametrize("parameters", [{"bits": 1}, {"bits": 9}, {"kind": "linear"}, {"channels": -1}])
def test_parameters_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        load_pass("codebook").parameters.model_validate(parameters)
